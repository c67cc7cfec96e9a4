"""The order path behind the gateways: core, matcher, journal, journaler, watcher."""
