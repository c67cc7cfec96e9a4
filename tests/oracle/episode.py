"""A seeded flow through core and reference, and what is left of it when they disagree: as few requests as possible."""
from tests.oracle.commands import Flow
from tests.oracle.comparison import Comparison

START_NS = 1_511_967_600_000_000_000


def times():
    """Of one request after the other: often equal, sometimes far apart."""
    now, step = START_NS, 0
    while True:
        yield now
        step += 1
        now += 0 if step % 3 == 0 else 999 if step % 50 else 86_400_000_000_123


def run(profile, config, seed, count):
    """Send `count` requests; returns the Comparison. Raises Difference, or what went wrong, with a short story."""
    comparison = Comparison(config)
    flow = Flow(profile, config, comparison.reference, seed)
    sent = []
    try:
        moments = times()
        begin = list(flow.deposits())
        for number in range(count):
            request = begin[number] if number < len(begin) else flow.request()
            sent.append((*request, next(moments)))
            comparison.step(*sent[-1])
        comparison.finish()
    except AssertionError as difference:
        story = shortest(config, sent, type(difference))
        raise type(difference)(
            f"--oracle-seed {seed} (profile {profile.name!r}), request {len(sent)}: {difference}\n"
            f"{len(story)} of these requests do it:\n" + "\n".join(f"  {request!r}," for request in story)) from None
    return comparison


def fails(config, requests, kind):
    """Whether these requests lead to a failure of that kind."""
    comparison = Comparison(config)
    try:
        for request in requests:
            comparison.step(*request)
        comparison.finish()
    except AssertionError as difference:
        return type(difference) is kind
    return False


def shortest(config, requests, kind, attempts_max=300):
    """The requests without those that the failure does not need, as far as so many attempts find out."""
    size, attempts = len(requests) // 2, 0
    while size and attempts < attempts_max:
        place = 0
        while place < len(requests) and attempts < attempts_max:
            attempts += 1
            fewer = requests[:place] + requests[place + size:]
            if fails(config, fewer, kind):
                requests = fewer
            else:
                place += size
        size //= 2
    return requests
