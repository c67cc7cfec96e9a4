"""The deterministic simulator: the whole pipeline in one process, with a disk, a clock and faults from a seed."""
