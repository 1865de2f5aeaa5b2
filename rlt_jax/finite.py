"""What is raised where numbers that must be finite are not."""


class NotFinite(Exception):
    """A number is NaN or infinite. `culprit` says where: which model, which tensor, which row."""

    def __init__(self, culprit: str) -> None:
        super().__init__(culprit)
        self.culprit = culprit
