"""A run's hold on the host's model: adapters put on, the model loaded and tried out, everything taken off again, and between steps on request."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

from ....lora_core.adapters import AdapterSet
from ....lora_core.borrowing.borrow import Borrowing, Measures
from ....lora_core.borrowing.comparison import writing
from ....lora_core.borrowing.compiling import Compiler
from ....lora_core.borrowing.frozen import place_of
from ....lora_core.compat import OutOfMemoryError, compiled_graphs
from ....lora_core.config import Recompute
from ....lora_core.data.batches import Batch
from ....lora_core.data.buckets import Fit
from ....lora_core.messages.blame import first_line, is_foreign, passing
from ....lora_core.messages.errors import LoomError, NonFiniteError
from ....lora_core.messages.message import Message
from .blame import misfit_width
from .captions import KEY, HostTexts, injection
from .conditioning import HostConditioning
from .kernels import TrainingKernels
from .layers import LAYERS, is_pure
from .model import HostModel
from .pictures import HostPictures
from .trials import Trials
from .verify import DIFFUSION, compiled_if_exact, prove_layers, verify

ACTIVATION_FACTOR = 3  # of a forward and backward over the host's estimate for sampling
BYTES_PER_VALUE = 4 * 4  # an adapter's value, its gradient and two Adam moments in fp32


class HostLending:
    """Of `model` and its `texts`.

    `remarks`: what there is to say about how the model is trained, since `training` was entered. `compiles`: whether its blocks are to run as graphs.
    """

    def __init__(self, model: HostModel, texts: HostTexts, conditioning: HostConditioning, pictures: HostPictures):
        self._model, self._texts, self._conditioning, self._pictures = model, texts, conditioning, pictures
        self._kernels = TrainingKernels()
        self._needed_bytes = 0
        self._reload = False
        self.compiles = False
        self.borrowing: Borrowing | None = None
        self.remarks: list[Message] = []

    # ---- a run -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def training(
        self, layers: Mapping[str, nn.Module], adapters: AdapterSet, recompute: Recompute, largest: tuple[int, ...]
    ) -> Iterator[None]:
        """Inside, `layers` carry `adapters` of the same names, and the model takes batches up to the shape `largest`. Raises LoomError."""
        if adapters.changes_text and self._texts.any_wired:
            raise LoomError("dataset.texts_encoded", field="dataset")
        self._conditioning.require_further_input()
        text_names = set(self._texts.names.values()) if adapters.changes_text else set()
        ours = {name: m for name, m in layers.items() if name not in text_names}
        theirs = {name: m for name, m in layers.items() if name in text_names}
        place = place_of(self._model.device, self._model.dtype)
        measures = Measures(bool(recompute), guard=not is_pure(self._model.network), place=place)
        borrowing = Borrowing(self._model.network, ours, adapters.only(ours), LAYERS, measures)
        self.borrowing = borrowing
        try:
            self._model.patcher.set_injections(KEY, [injection(borrowing)])
            self._texts.lend(adapters, theirs)
            self._needed_bytes = self._memory_for(adapters, recompute, largest)
            limits = compiled_graphs() if self.compiles else contextlib.nullcontext()
            with torch.inference_mode(False), self._kernels, limits:
                self._load()
                self._conditioning.require_further_input()
                adapters.prepare()  # some kinds cannot run before
                self._prove(borrowing, adapters.only(ours), self._trials(largest, measures))
                adapters.weights_changed()  # what was derived from them belongs to the test, and to inference mode
                with writing(borrowing.measures):
                    yield
        finally:
            self._hand_back()

    def before_a_pass(self, encoded_more: bool) -> None:
        """Loads the model again where the text encoder (`encoded_more`), or something else, may have taken its place since the last step."""
        if self.borrowing is None:
            return
        if encoded_more or self._reload or not self.borrowing.installed or not self._texts.ready:
            self._reload = False
            self._load()
        self.borrowing.choose_again()

    @contextlib.contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside, the host draws by itself; the next step loads the model again, also after a sample that failed."""
        self._model.forget()
        with self._kernels.paused():
            try:
                yield
            finally:
                self._model.forget()
                self._reload = self.borrowing is not None

    @contextlib.contextmanager
    def given_back(self) -> Iterator[None]:
        """Inside, the host has its models as they were before the run and may use them; the next step takes them again."""
        with self._kernels.paused():
            with torch.inference_mode():
                self._model.patcher.eject_model()
                self._texts.set_aside()
            yield
        self._reload = self.borrowing is not None

    def rest(self) -> None:
        """Takes the model off its device until the next pass, which loads it again."""
        with torch.inference_mode():
            self._model.unload()
        self._reload = self.borrowing is not None

    def _hand_back(self) -> None:
        """Takes everything off again that training put on."""
        with torch.inference_mode():
            self._model.patcher.eject_model()
        self._texts.take_back()
        if self.borrowing is not None:
            self.borrowing.eject()
        if (
            self.compiles
        ):  # not whenever the host takes us off for a moment: graphs would be made again after each sample
            Compiler.forget()
        self._model.patcher.remove_injections(KEY)
        self.borrowing = None

    def _load(self) -> None:
        self._model.load(self._texts.patchers, self._needed_bytes)

    def _memory_for(self, adapters: AdapterSet, recompute: Recompute, largest: tuple[int, ...]) -> int:
        """Bytes a step takes beside the model."""
        activations = self._model.activation_bytes(largest or (1, 4, 64, 64))
        return int(adapters.count() * BYTES_PER_VALUE + activations * (1 if recompute else ACTIVATION_FACTOR))

    # ---- the self-test -----------------------------------------------------------------------------------------------

    def _trials(self, largest: tuple[int, ...], measures: Measures) -> Trials:
        form = self._model.patcher.get_model_object("latent_format")
        plain = (1, form.latent_channels, *[1] * (form.latent_dimensions - 2), *[64] * min(2, form.latent_dimensions))
        quick = measures.checkpointing or self._model.text_width is not None
        return Trials(plain, (1, *largest[1:]) if largest else None, small_first=quick)

    def _prove(self, borrowing: Borrowing, adapters: AdapterSet, trials: Trials) -> None:
        """Raises LoomError for what cannot be trained, and says what is at fault; chooses the first way that is exact."""
        self.remarks = []
        borrowing.eject()
        prove_layers(self._model.network, place_of(self._model.device, self._model.dtype), DIFFUSION)
        self._texts.prove()
        borrowing.inject()
        shapes = trials.that_run(self._check)
        if not adapters.parameters() or not (borrowing.measures.guard or self.compiles):
            return
        for shape in shapes:
            try:
                self.remarks = list(self._proven(borrowing, adapters, functools.partial(self._trial, shape)))
            except OutOfMemoryError:
                if shape == shapes[-1]:
                    raise
                continue
            return

    def _proven(
        self, borrowing: Borrowing, adapters: AdapterSet, trial: Callable[[], torch.Tensor]
    ) -> Iterator[Message]:
        """Chooses the first way that is exact, then graphs where they are asked for and give the same; what there is to say of it."""
        dtype = self._model.dtype
        if borrowing.measures.guard:
            verdict = verify(self._model.network, adapters, borrowing, trial, dtype)
            if verdict.remark is not None:
                yield verdict.remark
        if self.compiles:
            remark = compiled_if_exact(borrowing, adapters, trial, dtype)
            if remark is not None:
                yield remark

    def _check(self, shape: tuple[int, ...]) -> None:
        """One forward pass on latents of this shape with a caption. Raises LoomError that blames the text or the model."""
        try:
            with torch.no_grad():
                answer = self._trial(shape)
        except BaseException as error:
            if not is_foreign(error):
                raise
            passing(error)
            caption = self._texts.any_caption()
            misfit = misfit_width(error, self._model.network, self._texts.text(self._texts.literal(caption)))
            if misfit:
                raise LoomError("clip.width", field="clip", width=misfit[0], wanted=misfit[1]) from error
            raise self._stopped(shape, first_line(error)) from error
        if not torch.isfinite(answer).all():
            weight = self._model.find_non_finite()
            if weight:
                raise NonFiniteError("base.damaged", weight=weight, step=1)

    def _stopped(self, shape: tuple[int, ...], reason: Message | str) -> LoomError:
        size, network = " x ".join(map(str, shape)), type(self._model.network).__name__
        return LoomError("model.stopped", field="model", network=network, size=size, reason=reason)

    def _trial(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A prediction for fixed noise of this shape and any caption."""
        x_t = torch.linspace(-1.5, 1.5, math.prod(shape), device=self._model.device).view(shape)
        sigmas = self._model.patcher.get_model_object("model_sampling").sigmas
        height, width = shape[-2:] if len(shape) > 3 else (8, 8)
        side = (width * self._pictures.step_px, height * self._pictures.step_px)
        batch = Batch(x_t, [self._texts.any_caption()], [Fit(side, side, (0, 0), side)], ["self-test"], torch.ones(1))
        use = self._model.use
        if use is not None and (use.behind is None or self._model.further is not None):
            # with a control picture as large as its target
            batch = dataclasses.replace(batch, shown=[use.example(x_t)])
        return self._model.answer(x_t, sigmas[len(sigmas) // 2].reshape(1), self._conditioning.of(batch, x_t))
