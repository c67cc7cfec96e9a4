"""Commands for operators and engineers: launcher, replay, feed, conformance, kill test, bench."""
