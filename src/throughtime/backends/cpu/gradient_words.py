"""Where the backward pass puts gradients and what they come from, as words of its block."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from throughtime.backends.call import Call
from throughtime.backends.cpu.gradients import Room
from throughtime.backends.cpu.shape import Shape
from throughtime.backends.cpu.sizes import part_address
from throughtime.backends.cpu.template import Given, Template, Word


def gradient_addresses(
    call: Call, y: Tensor, saved: Tensor, finals: Sequence[Tensor | None], room: Room
) -> dict[str, int]:
    """Addresses of what the backward pass reads and writes beside the call's own tensors."""
    at = part_address
    found = {"y": y.data_ptr()}
    for d in range(call.directions):
        found[f"saved {d}"] = at(saved, d)
        found[f"d_x {d}"], found[f"d_inputs {d}"] = at(room.x, d), at(room.inputs, d)
        for s, (final, start) in enumerate(zip(finals, room.start, strict=True)):
            found[f"d_final{s} {d}"], found[f"d_start{s} {d}"] = at(final, d), at(start, d)
        for name in ("d_W", "d_bias_ih", "d_bias_hh"):
            found[f"{name} {d}"] = 0
        for m in range(1 + len(call.cell.layout.products)):
            found[f"d_matrix{m} {d}"] = at(room.U[d][m], 0) if room.U else 0
        for name in call.cell.layout.vectors:
            found[f"d_{name} {d}"] = 0
        if room.W:
            found[f"d_W {d}"] = at(room.W[d], 0)
            for name, v in room.others[d].items():
                found[f"d_{name} {d}"] = v.data_ptr()
    return found


def gradient_words(template: Template, shape: Shape, d: int) -> dict[str, Word]:
    """Where the gradients of one direction go, and where those by its states come from."""
    plan = shape.plan
    words: dict[str, Word] = {n: Given(f"{n} {d}") for n in ("d_x", "d_W", "d_inputs")}
    words |= {"d_W_bias": Given(f"d_bias_ih {d}"), "d_U_bias": Given(f"d_bias_hh {d}")}
    words["d_own"] = template.list_of([Given(f"d_{name} {d}") for name in plan.vectors])
    matrices = [Given(f"d_matrix{m} {d}") for m in range(len(shape.widths.shapes))]
    words["d_matrices"] = template.list_of(matrices)
    for name in ("d_final", "d_start"):
        lists = [Given(f"{name}{s} {d}") for s in range(len(plan.state_names))]
        words[name] = template.list_of(lists)
    return words
