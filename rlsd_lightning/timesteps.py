"""The timesteps as Lightning's training data."""

from collections.abc import Iterator

__all__ = ["Timesteps"]


class Timesteps:
    """Yields (step k, timestep t) once, from where a restored state says.

    A list or a DataLoader would start again from the first timestep after a resume. The position advances before it
    yields, so the state saved while step k is under way says that k has been handed out.

    Args:
        timesteps: In the order they are visited; the list that the method has, not a copy.
    """

    def __init__(self, timesteps: list[int]) -> None:
        self.timesteps = timesteps
        self.position = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        while self.position < len(self.timesteps):
            step = self.position
            self.position += 1
            yield step, self.timesteps[step]

    def end_after(self, step: int) -> None:
        """End the schedule after a step that has not begun. The method shares the schedule and makes its latents clean in this step."""
        del self.timesteps[step + 1 :]

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]
