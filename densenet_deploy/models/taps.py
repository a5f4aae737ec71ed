"""See what every inner module of a network returns."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Tapped(nn.Module):
    """Wrap `module` so that it returns the outputs of its innermost modules by name, and its own as `output_name`."""

    def __init__(self, module: nn.Module, output_name: str) -> None:
        super().__init__()
        self.module = module
        self.output_name = output_name

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Run the module on (N, 3, H, W) and return name → tensor, in execution order."""
        seen: dict[str, Tensor] = {}
        inner = [(name, module) for name, module in self.module.named_modules() if not any(module.children())]
        handles = [module.register_forward_hook(_recorder(seen, name)) for name, module in inner]
        try:
            result = self.module(images)
        finally:
            for handle in handles:
                handle.remove()
        return {**seen, self.output_name: result}


def _recorder(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, object, object], None]:
    """A hook that copies a module's output the moment it is made: an in-place ReLU would overwrite its input's."""

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            seen[name] = output.clone()

    return hook
