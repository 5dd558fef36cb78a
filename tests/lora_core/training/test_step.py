import dataclasses
import json
import math

import pytest
import torch
from lora_loom.lora_core.backends.diffusers_backend import DiffusersBackend
from lora_loom.lora_core.data.batches import Batch
from lora_loom.lora_core.data.folder import open_sets
from lora_loom.lora_core.events import Listener
from lora_loom.lora_core.messages.errors import NonFiniteError
from lora_loom.lora_core.objectives import DiscreteLevels, Objective
from lora_loom.lora_core.rng import randn_like, step_rng
from lora_loom.lora_core.runs import checkpoints
from lora_loom.lora_core.training import step as step_module
from lora_loom.lora_core.training.assemble import assembled
from lora_loom.lora_core.training.job import Job
from lora_loom.lora_core.training.run import MAX_SKIPPED, Run
from lora_loom.lora_core.training.step import clip_grad_norm, diffusion_loss, optimizer_step
from safetensors.torch import load_file
from shapes import MODEL
from since import since

IN_FP16 = since("torch", "2.3", "the CPU computes in fp16 and has a GradScaler")


def make_batch(n, seed=0):
    latents = torch.randn(n, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
    return Batch(latents, [f"caption {i}" for i in range(n)], [None] * n, [f"{i}.png" for i in range(n)], torch.ones(n))


@pytest.fixture
def objective(toy_backend):
    return Objective("epsilon", DiscreteLevels(toy_backend._table))


@dataclasses.dataclass
class Recorded:
    """An objective that hands out noise levels drawn beforehand, so a batch can be cut differently."""

    inner: Objective
    sigmas: torch.Tensor

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def draw_sigma(self, n, rng):
        out, self.sigmas = self.sigmas[:n], self.sigmas[n:]
        return out


def test_loss_is_the_mean_squared_error_of_the_corrupted_sample_written_out(objective):
    batch, seen = make_batch(3), {}

    def predict(x_t, sigma, given):
        seen.update(x_t=x_t, sigma=sigma, batch=given)
        return x_t * 0.1

    loss = diffusion_loss(predict, batch, objective, step_rng(1, 0, 0, 0))
    rng = step_rng(1, 0, 0, 0)
    sigma = objective.draw_sigma(3, rng)
    noise = randn_like(batch.latents, rng)
    x_t = batch.latents + sigma.float().view(-1, 1, 1, 1) * noise
    expected = torch.stack([torch.nn.functional.mse_loss(x * 0.1, n) for x, n in zip(x_t, noise)])
    torch.testing.assert_close(
        loss, expected, rtol=1e-5, atol=1e-6
    )  # x_t is rounded once from float64 there, twice here
    assert torch.equal(seen["sigma"], sigma)
    assert seen["batch"] is batch
    assert loss.dtype == torch.float32


def test_sample_weights_scale_each_loss_on_its_own(objective):
    batch = make_batch(3)
    plain = diffusion_loss(lambda x, s, b: x, batch, objective, step_rng(1, 0, 0, 0))
    weighted = diffusion_loss(
        lambda x, s, b: x,
        dataclasses.replace(batch, weight=torch.tensor([1.0, 0.0, 0.5])),
        objective,
        step_rng(1, 0, 0, 0),
    )
    assert torch.equal(weighted, plain * torch.tensor([1.0, 0.0, 0.5]))


def test_accumulated_gradient_of_four_times_two_equals_one_batch_of_eight(objective, monkeypatch):
    batch, sigmas = make_batch(8), objective.draw_sigma(8, step_rng(2, 0, 0, 0))
    noise = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(9))
    queue = []
    monkeypatch.setattr("lora_loom.lora_core.objectives.randn_like", lambda x, rng: queue.pop(0))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    )

    def gradient(parts):
        network.zero_grad()
        levels = Recorded(objective, sigmas)
        queue.extend(noise[part] for part in parts)
        total = 0.0
        for part in parts:
            piece = Batch(
                batch.latents[part], batch.captions[part], batch.fits[part], batch.names[part], batch.weight[part]
            )
            share = diffusion_loss(lambda x, s, b: network(x), piece, levels, torch.Generator()).mean() / len(parts)
            share.backward()
            total += share.item()
        return torch.cat([p.grad.flatten() for p in network.parameters()]), total

    whole, whole_loss = gradient([slice(0, 8)])
    split, split_loss = gradient([slice(k, k + 2) for k in range(0, 8, 2)])
    # Same sum of float32 terms in another order; the terms reach the size of the largest entry.
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())
    assert split_loss == pytest.approx(whole_loss, rel=1e-5)


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def test_the_passes_of_a_step_go_on_through_the_pictures_and_their_gradients_are_averaged(
    toy_config, run_toy, tmp_path, monkeypatch
):
    names, losses, gradients, summed = [], [], [], []
    loss_of, backward = step_module.diffusion_loss, Run.backward

    def noted_loss(predict, batch, *rest):
        each = loss_of(predict, batch, *rest)
        names.append(batch.names)
        losses.append(each.mean())
        return each

    def noted_backward(self, share):
        gradients.append(flat(torch.autograd.grad(losses[-1], self.parameters(), retain_graph=True)))
        backward(self, share)

    def kept(params, max_norm):
        summed.append(flat(p.grad for p in params))
        return summed[-1].norm()

    monkeypatch.setattr(step_module, "diffusion_loss", noted_loss)
    monkeypatch.setattr(Run, "backward", noted_backward)
    monkeypatch.setattr(step_module, "clip_grad_norm", kept)
    result = run_toy(toy_config(steps=1, batch_size=1, grad_accum=2), tmp_path)
    assert names[0] != names[1]
    expected = (gradients[0] + gradients[1]) / 2
    torch.testing.assert_close(summed[0], expected, rtol=1e-5, atol=1e-6 * expected.abs().max().item())
    assert result.losses == pytest.approx([(losses[0].item() + losses[1].item()) / 2], rel=1e-6)


@IN_FP16
def test_gradients_of_an_fp16_model_are_scaled_while_they_are_made_and_come_out_unscaled(
    toy_config, run_toy, tmp_path, monkeypatch
):
    seen, scales, backward = [], [], Run.backward

    def kept(params, max_norm):
        seen.append(flat(p.grad for p in params).clone())
        return seen[-1].norm()

    def noted(self, share):
        scales.append(self.scaler.get_scale())
        backward(self, share)

    monkeypatch.setattr(step_module, "clip_grad_norm", kept)
    monkeypatch.setattr(Run, "backward", noted)
    run_toy(toy_config(steps=1), tmp_path / "fp32")
    half = DiffusersBackend(MODEL, "fp16", device="cpu")
    result = run_toy(toy_config(steps=1, precision="fp16"), tmp_path / "fp16", backend=half)
    assert scales[0] == 1
    assert scales[1] > 1000
    error = (seen[1] - seen[0]).norm() / seen[0].norm()
    assert error < 0.05  # fp16 keeps 11 bits, through a network and back
    assert {p.dtype for p in half.unet.parameters()} == {torch.float16}
    assert {v.dtype for v in result.tensors.values()} == {torch.float32}


@IN_FP16
def test_an_fp16_overflow_costs_a_step_and_only_many_in_a_row_end_the_run(toy_config, run_toy, tmp_path, monkeypatch):
    half = DiffusersBackend(MODEL, "fp16", device="cpu")
    predict, calls, bad = type(half).predict, [], {0}

    def overflowing(self, *given):
        out = predict(self, *given)
        if out.requires_grad and len(calls) in bad:
            out.register_hook(lambda grad: grad * math.inf)
        calls.append(1)
        return out

    monkeypatch.setattr(type(half), "predict", overflowing)
    result = run_toy(toy_config(steps=2, precision="fp16"), tmp_path / "once", backend=half)
    assert len(result.losses) == 2
    assert all(math.isfinite(loss) for loss in result.losses)
    assert any(v.any() for k, v in result.tensors.items() if "lora_up" in k)
    calls.clear()
    bad.update(range(100))
    with pytest.raises(NonFiniteError, match=f"[Ss]tep {MAX_SKIPPED + 1}\\b"):
        run_toy(toy_config(steps=MAX_SKIPPED + 5, precision="fp16"), tmp_path / "always", backend=half)


def test_clipping_is_clip_grad_norm_of_torch_and_zero_turns_it_off():
    def params():
        rng = torch.Generator().manual_seed(0)
        out = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 40)]
        for p in out:
            p.grad = torch.randn(p.shape, generator=rng) * 3
        return out

    ours, theirs, free = params(), params(), params()
    assert clip_grad_norm(ours, 1.0) == torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(ours, theirs))
    # The clipped norm is 1 / (1 + 1e-6 / norm) in torch's formula, plus float32 rounding.
    assert torch.cat([p.grad for p in ours]).norm().item() == pytest.approx(1.0, rel=1e-5)
    norm = clip_grad_norm(free, 0.0)
    assert norm.item() > 3
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(free, params()))


def test_a_small_gradient_is_not_scaled_up_by_clipping():
    p = torch.nn.Parameter(torch.zeros(2))
    p.grad = torch.tensor([0.3, 0.4])
    clip_grad_norm([p], 1.0)
    assert p.grad.tolist() == torch.tensor([0.3, 0.4]).tolist()


def test_training_nothing_is_an_error():
    with pytest.raises(NonFiniteError, match="no adapter received a gradient"):
        clip_grad_norm([torch.nn.Parameter(torch.zeros(2))], 1.0)


class Borrowed:
    """The toy backend with one prediction replaced, everything else passed on."""

    def __init__(self, backend, bad_call):
        self._backend, self._bad_call, self.calls = backend, bad_call, 0

    def __getattr__(self, name):
        return getattr(self._backend, name)

    def predict(self, x_t, sigma, batch):
        self.calls += 1
        out = self._backend.predict(x_t, sigma, batch)
        return out * math.nan if self.calls == self._bad_call else out


def test_non_finite_loss_names_step_and_pictures_and_keeps_the_last_good_weights(
    toy_backend, toy_config, run_toy, tmp_path
):
    config, seen = toy_config(steps=6, grad_accum=2), []

    class Record(Listener):
        def on_step(self, report):
            seen.append(report)

    with pytest.raises(NonFiniteError) as caught:
        run_toy(config, tmp_path / "bad", Record(), backend=Borrowed(toy_backend, bad_call=6))  # second pass of step 3
    unbroken = run_toy(toy_config(steps=2, grad_accum=2), tmp_path / "good")
    message = str(caught.value)
    assert "Step 3: loss nan" in message
    assert sum(f"{n}.png" in message for n in range(4)) >= 2  # two passes of two pictures each, doubles named once
    assert [r.step for r in seen] == [1, 2]
    kept = load_file(tmp_path / "bad" / "toy_test.safetensors")
    assert all(torch.equal(kept[k], unbroken.tensors[k]) for k in unbroken.tensors)
    assert checkpoints.latest(tmp_path / "bad" / "checkpoints")[0].step == 2
    files = list((tmp_path / "bad").rglob("*.safetensors"))
    assert len(files) == 3  # result, adapter, optimizer
    assert all(torch.isfinite(v).all() for f in files for v in load_file(f).values())
    lines = (tmp_path / "bad" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_non_finite_loss_in_the_first_step_writes_no_weights_at_all(toy_backend, toy_config, run_toy, tmp_path):
    with pytest.raises(NonFiniteError, match="Step 1: loss nan"):
        run_toy(toy_config(), tmp_path / "run", backend=Borrowed(toy_backend, bad_call=1))
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_damaged_base_weight_is_named(toy_backend, toy_config, run_toy, tmp_path):
    weight = toy_backend.unet.mid_block.resnets[0].conv1.weight
    before = weight[0, 0, 0, 0].item()
    try:
        weight[0, 0, 0, 0] = math.inf
        with pytest.raises(
            NonFiniteError, match=r"weight mid_block\.resnets\.0\.conv1\.weight is not finite.*Step 1 was not made"
        ):
            run_toy(toy_config(), tmp_path / "run")
    finally:
        weight[0, 0, 0, 0] = before
    assert toy_backend.find_non_finite() is None
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_learning_rate_zero_moves_nothing_and_a_positive_one_does(toy_config, run_toy, tmp_path):
    still = run_toy(toy_config(steps=1, schedule={"warmup_steps": 1}), tmp_path / "still").tensors
    moved = run_toy(toy_config(), tmp_path / "moved").tensors
    ups = [k for k in still if k.endswith("lora_up.weight")]
    assert not any(still[k].any() for k in ups)
    assert all(moved[k].any() for k in ups)


def test_a_step_reads_the_device_once_and_a_layer_without_gradients_stays_untouched(
    toy_config, toy_backend, tmp_path, monkeypatch
):
    config = toy_config(steps=3)
    waits, tolist = [], torch.Tensor.tolist
    with assembled(Job(config, toy_backend, open_sets(config), tmp_path)) as run:
        still, adapter = next(iter(run.adapters))
        look = run._look_for_gradients

        def without_gradients():
            for parameter in adapter.parameters():
                if parameter.grad is not None:
                    parameter.grad.zero_()
            look()

        run._look_for_gradients = without_gradients
        for step in range(3):
            waits.clear()
            monkeypatch.setattr(torch.Tensor, "tolist", lambda x: waits.append(x.numel()) or tolist(x))
            optimizer_step(run, step)
            monkeypatch.undo()
            assert len(waits) == 1, waits  # losses, norm, and the gradients that were looked for, at once
            assert run.untouched == {still}
