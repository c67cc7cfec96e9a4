"""The exchange in plain Python and exact decimals: the oracle the fast core is compared with."""
