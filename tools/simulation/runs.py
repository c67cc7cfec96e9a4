"""Running plans: one, many, and the shortest one that still fails."""
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from tools.simulation.history import Violation
from tools.simulation.plan import Plan, Run, Send, plan_of
from tools.simulation.world import made

SHRINK_SECONDS = 60.0


@dataclass
class Outcome:
    plan: Plan
    violation: Violation = None
    injected: Counter = field(default_factory=Counter)
    story: list = field(default_factory=list)
    operations: int = 0
    sequence: int = 0          # where the history ends


def run_plan(plan):
    """Everything that the plan says, then nothing goes wrong any more and all must end well."""
    outcome = Outcome(plan)
    with made(plan.settings, plan.seed) as world:
        try:
            for action in plan.actions:
                action.apply(world)
            world.tell("nothing goes wrong any more")
            world.settle()
        except Violation as violation:
            outcome.violation = violation
            world.tell(f"VIOLATION: {violation}".replace(f"{world.data}/", ""))
        outcome.injected, outcome.story = world.injected, world.story
        outcome.injected["failed disk operation"] = world.faults.injected
        outcome.operations, outcome.sequence = len(world.operations), world.history.end.sequence
    return outcome


def run_seeds(seeds, sync=None, advance=lambda: None):
    """Yield the Outcome of each seed."""
    for seed in seeds:
        yield run_plan(plan_of(seed, sync))
        advance()


def shrunk(outcome, seconds=SHRINK_SECONDS):
    """The outcome of a shorter plan that fails in the same way: without each part that is not needed for it."""
    until, kind = time.monotonic() + seconds, outcome.violation.kind
    best, size = outcome, max(1, len(outcome.plan.actions) // 2)
    while size >= 1 and time.monotonic() < until:
        begin, is_shorter = 0, False
        while begin < len(best.plan.actions) and time.monotonic() < until:
            actions = best.plan.actions
            tried = run_plan(replace(best.plan, actions=actions[:begin] + actions[begin + size:]))
            if tried.violation is not None and tried.violation.kind == kind:
                best, is_shorter = tried, True
            else:
                begin += size
        if not is_shorter:
            size //= 2
    return _with_fewer_parts(best, until)


def _with_fewer_parts(best, until):
    """Fewer commands in what is sent, and fewer steps in a run."""
    for index, action in enumerate(best.plan.actions):
        for smaller in _smaller(action):
            if time.monotonic() > until:
                return best
            actions = list(best.plan.actions)
            actions[index] = smaller
            tried = run_plan(replace(best.plan, actions=tuple(actions)))
            if tried.violation is not None and tried.violation.kind == best.violation.kind:
                best = tried
                break
    return best


def _smaller(action):
    if isinstance(action, Send):
        for wanted in action.wanted if len(action.wanted) > 1 else ():
            yield replace(action, wanted=(wanted,))
        if len(action.wanted) > 2:
            yield replace(action, wanted=action.wanted[:len(action.wanted) // 2])
    elif isinstance(action, Run) and action.steps > 1:
        yield replace(action, steps=action.steps // 2)
