"""Simulated processes: the real code of one, run a few steps at a time, and killed at any of them.

Each is a thread, of which exactly one runs at a time: whoever runs one waits until its steps are used up. So what
happens depends on nothing but the order in which tasks are run.
"""
import threading


class Killed(BaseException):
    """The process ends here as by kill -9: whatever it still calls while its stack unwinds does nothing."""


class Task:
    """`work()` is the process's code; `at` says before which step it stands, `failure` what ended it, if it failed;
    `is_hit` is for whoever lets its calls fail."""

    def __init__(self, name, work):
        self.name, self.at, self.failure = name, "its start", None
        self.is_alive, self.is_hit, self._is_killed = True, False, False
        self._work, self._left = work, 0
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self):
        self._go.acquire()
        try:
            if not self._is_killed:
                self._work()
        except Killed:
            pass
        except BaseException as failure:
            self.failure = failure
        self.is_alive, self._work = False, None
        self._back.release()

    def run(self, steps):
        """Let it take so many steps, fewer where it has nothing to do. For whoever drives the tasks."""
        self._left = steps
        self._go.release()
        self._back.acquire()

    def kill(self):
        """End it where it stands."""
        if self.is_alive:
            self._is_killed = True
            self.run(0)

    def step(self, what):
        """For the task itself: it stands before something that others may see, or not see any more."""
        if self._is_killed:
            raise Killed
        self.at = what
        self._left -= 1
        if self._left < 0:
            self._pause()
            self._left -= 1

    def idle(self):
        """For the task itself: it has nothing to do until others have done something."""
        if self._is_killed:
            raise Killed
        self.at = "something to do"
        self._left = 0
        self._pause()

    def _pause(self):
        self._back.release()
        self._go.acquire()
        if self._is_killed:
            raise Killed
