"""Coverage-guided fuzzing of what a client's bytes reach first, with atheris:

    python -m tests.fuzz TARGET [options of libFuzzer, a folder for what is found]

runs until it is stopped or finds something, which it leaves in a file `crash-...`; given such a file, it runs that
alone. `-max_total_time=SECONDS` ends it. The compiled parsers run as Python, so that atheris sees their branches.
"""
