"""The event loop of a gateway: asyncio's own, which works while it would only wait."""
import asyncio
import selectors


class WorkingSelector(selectors.EpollSelector):
    """`work(seconds)`, once it is set, stands for waiting: it returns after so long (None: without end), or as soon as
    the loop has something to do - when `fileno` is readable, or when the work itself called into the loop."""

    work = None

    def select(self, timeout=None):
        if self.work is not None:
            self.work(timeout)
            timeout = 0
        return super().select(timeout)


class GatewayLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self.waiting = WorkingSelector()
        super().__init__(self.waiting)

    def work_while_waiting(self, work):
        self.waiting.work = work


def run(main):
    """As asyncio.run, on a GatewayLoop."""
    loop = GatewayLoop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.waiting.work = None
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        asyncio.set_event_loop(None)
        loop.close()
