"""Progress of a command that does one thing after another: a bar for each in turn."""

from contextlib import ExitStack


class Bars(ExitStack):
    """A progress bar for each activity in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.activity = ""

    def update(self, activity: str, done: int, total: int) -> None:
        """Show that `done` of `total` is done of `activity`."""
        from fewstep.training.metrics import ProgressBar

        if activity != self.activity:
            self.close()
            self.activity = activity
            self.bar = self.enter_context(ProgressBar(activity, total, done, shown=True))
        self.bar.update(done, "")
