"""Two networks that share the noise levels of one model (Wan 2.2 A14B), trained in turn in one run: a backend that holds both, one at a time on the device."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import torch
from PIL import Image
from torch import nn

from ....convert.results import EXPERTS
from ....lora_core.adapters import AdapterSet
from ....lora_core.adapters.tokens import TokenTable
from ....lora_core.backends.base import (
    Backend,
    CompilesBlocks,
    EncodesClips,
    EncodesShownTexts,
    EncodesSpread,
    NamesSamplers,
    Remarks,
    SampleJob,
    Samplers,
    ShowsControls,
    TakesWired,
)
from ....lora_core.backends.base_model import STEPS, BaseModel, Expert
from ....lora_core.backends.marks import WAN_BOUNDARY, WAN_I2V_BOUNDARY
from ....lora_core.config import ObjectiveConfig, Recompute
from ....lora_core.data.batches import Batch
from ....lora_core.messages.errors import LoomError
from ....lora_core.messages.message import Message
from ....lora_core.objectives import AlternatingObjective
from .backend import HostBackend
from .lent_model import LentModel

HIGH, LOW = EXPERTS
_ROUNDING = 1e-6  # of a noise level in float32


class HostExperts(LentModel):
    """Lends the MODELs of both experts, with the CLIP and VAE that belong to them. Layers are called `<expert>.<path>`; each pass goes to the expert
    that its noise levels belong to.

    `every`: steps of one before the other has its turn. `boundary`: the sigma between them; 0 takes what the model was made for.
    """

    recomputes = HostBackend.recomputes
    trains_in_turn = True

    def __init__(self, high: Any, low: Any, clip: Any, vae: Any, every: int, boundary: float = 0.0):
        first = HostBackend(high, clip, vae)
        self._members = {HIGH: first, LOW: HostBackend(low, clip, vae, beside=first)}
        self._first, self._every = first, every
        self.model, self.texts = first.model, first.texts
        self.conditioning, self.pictures = first.conditioning, first.pictures
        self._require_a_pair()
        self.boundary = boundary or self._usual_boundary()
        self._cut = self.boundary  # the level that divides what is drawn, in whole timesteps

    def _require_a_pair(self) -> None:
        """Raises LoomError for what are not the two experts of one model, each at its place."""
        high, low = self._members.values()
        if high.model.base is low.model.base:
            raise LoomError("experts.same", field="model_low")
        shapes = [{name: p.shape for name, p in m.network.named_parameters()} for m in (high, low)]
        if high.family != low.family or shapes[0] != shapes[1]:
            raise LoomError("experts.unlike", field="model_low", high=high.family, low=low.family)
        for name, member in self._members.items():
            expert = member.base_model(ObjectiveConfig()).expert
            if expert is not None and expert.name != f"expert.{name}":
                raise LoomError("experts.swapped", field=f"model_{name.split('_')[0]}", expert=Message.of(expert.name))

    def _usual_boundary(self) -> float:
        """By what the model's file says it is, else by whether it reads a first frame."""
        for member in self._members.values():
            expert = member.base_model(ObjectiveConfig()).expert
            if expert is not None:
                return expert.low or expert.high
        return WAN_BOUNDARY if self._first.model.further is None else WAN_I2V_BOUNDARY

    # ---- the model ---------------------------------------------------------------------------------------------------

    def layers(self) -> Mapping[str, nn.Module]:
        return {f"{name}.{path}": layer for name, m in self._members.items() for path, layer in m.layers().items()}

    def weight(self, layer: nn.Module) -> AbstractContextManager[tuple[torch.Tensor, torch.Tensor | None]]:
        return self._first.weight(layer)

    def file_name(self, path: str) -> str:
        name, _, rest = path.partition(".")
        return f"{name}.{self._members[name].file_name(rest)}"

    def fingerprint(self) -> str:
        return "+".join(member.fingerprint() for member in self._members.values())

    def base_model(self, config: ObjectiveConfig) -> BaseModel:
        both = [member.base_model(config) for member in self._members.values()]
        files = " + ".join(filter(None, (one.file for one in both)))
        distilled = next((one.distilled for one in both if one.distilled), None)
        return dataclasses.replace(both[0], expert=None, distilled=distilled, file=files)

    def objective(self, config: ObjectiveConfig) -> AlternatingObjective:
        """Each expert draws its own part of the levels. Raises LoomError for a job that says others."""
        if (config.min_timestep, config.max_timestep) != (0, STEPS):
            raise LoomError("experts.range", field="objective.min_timestep")
        shift, members = self._first.base_model(config).shift or 1.0, []
        for name, low, high in ((HIGH, self.boundary, 1.0), (LOW, 0.0, self.boundary)):
            first, last = Expert(f"expert.{name}", low, high).range_of(shift)
            theirs = dataclasses.replace(config, min_timestep=first, max_timestep=last)
            members.append((name, self._members[name].objective(theirs)))
        cut = torch.tensor([members[0][1].config.min_timestep / STEPS], dtype=torch.float64)
        self._cut = float(members[0][1].levels(cut))
        return AlternatingObjective.of(tuple(members), self._every)

    def find_non_finite(self) -> str | None:
        return next(filter(None, (member.find_non_finite() for member in self._members.values())), None)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def text_layers(self) -> Mapping[str, nn.Module]:
        return {}

    def token_tables(self) -> Mapping[str, TokenTable]:
        return {}

    # ---- training ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self,
        layers: Mapping[str, nn.Module],
        adapters: AdapterSet,
        recompute: Recompute = Recompute.NONE,
        largest: tuple[int, ...] = (),
    ) -> Iterator[None]:
        """Both are lent and proven, one after the other; a pass loads the one it needs."""
        if adapters.changes_text:
            raise LoomError("experts.text", field="text_encoder.train")
        with contextlib.ExitStack() as lent:
            for name, member in self._members.items():
                theirs = {key: layer for key, layer in layers.items() if key.startswith(f"{name}.")}
                self._alone(member)
                lent.enter_context(member.training(theirs, adapters.only(theirs), recompute, largest))
            yield

    def compile_blocks(self) -> None:
        """From now on the blocks of both run as graphs while they are lent, where that is exact."""
        for member in self._members.values():
            member.compile_blocks()

    def remarks(self) -> Sequence[Message]:
        """What there is to say about how they are trained; once, where it is the same of both."""
        high, low = (member.remarks() for member in self._members.values())
        return (*high, *(remark for remark in low if remark not in high))

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        with self._members[LOW].given_back(), self._members[HIGH].given_back():  # the last one lent is the first back
            yield

    def predict(self, x_t: torch.Tensor, sigma: torch.Tensor, batch: Batch) -> torch.Tensor:
        member = self._members[HIGH if float(sigma.amin()) >= self._cut * (1 - _ROUNDING) else LOW]
        self._alone(member)
        return member.predict(x_t, sigma, batch)

    def _alone(self, member: HostBackend) -> None:
        """Takes the other one off the device."""
        for other in self._members.values():
            if other is not member:
                other.lending.rest()

    # ---- sampling ----------------------------------------------------------------------------------------------------

    def samplers(self) -> Samplers:
        return self._first.samplers()

    def sample(self, job: SampleJob) -> list[Image.Image]:
        """As two KSampler (Advanced) do in a row: the high noise expert down to the boundary, the low noise expert from there on."""
        config, (high, low) = job.config, self._members.values()
        with low.lending.sampling(), high.lending.sampling(), torch.inference_mode():  # the last one lent pauses first
            sampling = high.model.patcher.get_model_object("model_sampling")
            levels = comfy.samplers.calculate_sigmas(sampling, config.scheduler, config.steps)
            turn = int((levels[: config.steps] >= self.boundary).sum())
            latent = self.empty_latent(job)
            noise = comfy.sample.prepare_noise(latent, config.seed)
            for member, first, last in ((high, 0, turn), (low, turn, config.steps)):
                if first == last:
                    continue
                self._alone(member)
                latent = member.sampled(
                    job,
                    latent,
                    noise if first == 0 else torch.zeros_like(noise),
                    disable_noise=first > 0,
                    start_step=first,
                    last_step=last,
                    force_full_denoise=last == config.steps,
                )
            return self.pictures.decode(self.with_given(latent, job))


if TYPE_CHECKING:

    def _fulfils_the_protocols(
        backend: HostExperts,
    ) -> tuple[
        Backend,
        EncodesClips,
        EncodesSpread,
        TakesWired,
        Remarks,
        NamesSamplers,
        ShowsControls,
        EncodesShownTexts,
        CompilesBlocks,
    ]:
        return backend, backend, backend, backend, backend, backend, backend, backend, backend
