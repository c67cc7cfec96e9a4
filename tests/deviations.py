"""The recorded lines that are proven wrong (conformance_deviations.json): what was meant, and the proof."""
import json
from pathlib import Path

DEVIATIONS = json.loads(Path(__file__).with_name("conformance_deviations.json").read_text(encoding="utf-8"))


def meant(name, request):
    """The request to send in place of `request` of the recording `name` (without .jsonl); mostly the same."""
    for deviation in DEVIATIONS:
        if deviation["file"] == f"{name}.jsonl" and deviation["request"] == request:
            return deviation["meant"]
    return request
