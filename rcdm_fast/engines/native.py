"""The native engine: the network as a program of fused operators, the fastest way that needs no other runtime.

CPU: convolutions with packed weights, of oneDNN and (3x3, fp32) our own, and our C++ operators, in fp32 or bf16. fp32
images run in groups of one fixed size and get equal bits in any batch; in bf16 an image may differ with its batch by
rounding. CUDA: cuDNN convolutions and our C++ or Triton operators (the faster of the two for every shape, measured
while warming up), in fp32, bf16 or fp16, replayed as one CUDA graph per batch bucket; where Triton is there, two other
forms of the program are captured too (`folded.py`, `summed.py`), and the fastest one kept. Whole trajectories of small
batches are replayed where that is faster. fp32 is float32 whatever the host program allows. fp8 on CUDA, with a file of
scales: inner 3x3 convolutions of e4m3 in Triton (`fp8_program.py`), all else in bf16, one form alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rcdm_fast import devices, ops
from rcdm_fast.diffusion.conditioning import Batch
from rcdm_fast.diffusion.engine import Engine
from rcdm_fast.diffusion.solvers import StepNoise
from rcdm_fast.diffusion.trajectory import Trajectory
from rcdm_fast.engines.backends import OneDnnBackend, TorchBackend
from rcdm_fast.engines.cuda_graphs import GraphCache
from rcdm_fast.engines.folded import FoldedProgram
from rcdm_fast.engines.fp8_program import Fp8Program
from rcdm_fast.engines.groups import in_groups
from rcdm_fast.engines.program import Program
from rcdm_fast.engines.summed import SummedProgram
from rcdm_fast.engines.trajectory_graphs import TrajectoryGraphs
from rcdm_fast.exporters.fp8 import Calibrated
from rcdm_fast.models.unet import UNet
from rcdm_fast.ops import candidates, library, selection, winograd
from rcdm_fast.precision import exact, without_bf16

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
OLDEST_FP8 = (8, 9)  # compute capability of the first GPUs that multiply e4m3


def reasons_unavailable(device: torch.device, precision: str) -> list[str]:
    """Why the native engine cannot run on a device in a precision; empty if it can."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return ["this PyTorch sees no CUDA device"]
        if precision == "fp8":
            return _reasons_no_fp8(device)
        if library.has_native("cuda") or not candidates.triton_reason(device):
            return []
        return [f"no CUDA operators: {_missing('cuda')}; and {candidates.triton_reason(device)}"]
    if device.type != "cpu":
        return [f"there are no native operators for {device.type}"]
    reasons = []
    if not library.has_native("cpu"):
        reasons.append(f"no C++ operators: {_missing('cpu')}")
    if not torch.backends.mkldnn.is_available():
        reasons.append("this PyTorch was built without oneDNN")
    elif precision == "fp8":
        reasons.append("fp8 runs on CUDA only (engine eager emulates it)")
    elif precision == "fp16":
        reasons.append("fp16 runs on CUDA only (use bf16)")
    elif precision == "bf16" and without_bf16(device):
        reasons.append(without_bf16(device))
    return reasons


def _reasons_no_fp8(device: torch.device) -> list[str]:
    if candidates.triton_reason(device):
        return [f"fp8 needs Triton: {candidates.triton_reason(device)}"]
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < OLDEST_FP8:
        return [f"this GPU (sm_{major}{minor}) does not multiply e4m3; sm_89 is the oldest that does"]
    return []


def _missing(part: str) -> str:
    return next((found.reason for found in library.describe() if found.name == part), f"no part {part}")


class NativeEngine(Engine):
    """See `rcdm_fast.diffusion.engine.Engine`.

    Args:
        network, device, precision: as of `engines.make`.
        calibrated: what fp8 needs, and no other precision.
    """

    name = "native"

    def __init__(
        self, network: UNet, device: torch.device, precision: str, calibrated: Calibrated | None = None
    ) -> None:
        assert (calibrated is not None) == (precision == "fp8")
        self.precision = precision
        self._calibrated = calibrated
        if calibrated is not None:
            self.files, self.digests = (calibrated.file,), (calibrated.digest,)
        self.device = devices.placed(device)
        self._network = network.to(self.device)
        self._program: Program | None = None
        self._backend: OneDnnBackend | TorchBackend | None = None
        self._graphs: GraphCache | None = None
        self._trajectories: TrajectoryGraphs | None = None
        self._batch_size = 0

    def warmup(self, batch_sizes: tuple[int, ...] = (1,)) -> None:
        """Prepare weights and, on CUDA, measure the operators and capture a graph for each batch size's bucket.

        `bind` does this for its own batch where it has not been done; calling it first keeps the time out of the first
        images.
        """
        program = self._made()
        if self._graphs is not None:
            for size in batch_sizes:
                self._graphs.warm(size)
        elif self.device.type == "cpu":
            size = self._network.config.image_size
            film = self._film(1)
            for count in batch_sizes:
                x, rows = torch.zeros(count, 3, size, size), torch.zeros(count, dtype=torch.int64)
                with torch.inference_mode(), exact(self.precision, self.device):
                    self._run(program, x, film, rows)

    def prepare(self, batch: Batch) -> None:
        self._made()
        if self._graphs is not None:
            self._graphs.prepare(batch)
        elif isinstance(self._backend, OneDnnBackend) and len(batch) != self._batch_size:
            self._backend.forget_buffers()
        self._batch_size = len(batch)

    @torch.inference_mode()
    def evaluate(self, batch: Batch, x: Tensor, k: int) -> Tensor:
        if self._graphs is not None:
            return self._graphs.replay(batch, x, k)
        film, rows = batch.film_rows(k)
        with exact(self.precision, self.device):
            return self._run(self._made(), x, film, rows)

    def trajectory(self, batch: Batch, trajectory: Trajectory, x: Tensor, step_noise: StepNoise) -> Tensor | None:
        return None if self._trajectories is None else self._trajectories.run(batch, trajectory, x, step_noise)

    @torch.inference_mode()
    def first_nonfinite(self, batch: Batch, x: Tensor, k: int) -> str | None:
        """Name of the first layer whose output is not finite for these images at step k, or None."""
        with devices.current(self.device), exact(self.precision, self.device):
            return self._made().first_nonfinite(x, *batch.film_rows(k))

    def describe(self) -> str:
        if self.device.type == "cpu":
            ours = "3x3 convolutions after Winograd, other " if winograd.runs_here(DTYPES[self.precision]) else ""
            return (
                f"native, {self.precision}, on cpu: {ours}oneDNN convolutions with packed weights, "
                f"C++ operators ({ops.instruction_set()})"
            )
        choices = self._backend.choices if isinstance(self._backend, TorchBackend) else selection.Choices(self.device)
        chosen = "; ".join(f"{name}: {what}" for name, what in choices.describe().items())
        graphs = self._graphs.describe() if self._graphs is not None else "no graph captured yet"
        trajectories = self._trajectories.describe() if self._trajectories is not None else ""
        what = self.precision
        if self._calibrated is not None:
            what += f" ({self._calibrated.in_words()}), scales {self._calibrated.digest[:12]}"
        said = "; ".join(filter(None, (chosen, graphs, trajectories)))
        return f"native, {what}, on {self.device}: cuDNN convolutions, {said}"

    def _run(self, program: Program, x: Tensor, film: Tensor, rows: Tensor) -> Tensor:
        if self.precision == "fp32":
            return in_groups(lambda part, own: program.denoise(part, film, own), x, rows).contiguous()
        return program.denoise(x, film, rows).to(torch.float32, memory_format=torch.contiguous_format)

    def _film(self, count: int) -> Tensor:
        """FiLM rows of zeros, as a batch has them: [count,F], of maps [count,F,h,w] with channels last."""
        width = sum(block.film_width for block in self._network.residual_blocks())
        sides = self._network.config.condition_map[1:]
        return torch.zeros(count, *sides, width, device=self.device).movedim(-1, 1)

    def _made(self) -> Program:
        if self._program is not None:
            return self._program
        dtype = DTYPES[self.precision]
        ops.load()
        if self.device.type == "cpu":
            self._backend = OneDnnBackend(dtype)
            self._program = Program(self._network, self._backend, dtype, self.device)
        else:
            backend = TorchBackend(dtype, self.device)
            self._backend = backend
            with devices.current(self.device):
                self._program = Program(self._network, backend, dtype, self.device)
            size = self._network.config.image_size
            forms: dict[str, Program] = {"as written": self._program}
            if self._calibrated is not None:
                with devices.current(self.device):
                    made = Fp8Program(self._program, self._network, self._calibrated.scales, self.device)
                self._program, forms = made, {"fp8": made}
                backend.made.clear()  # weights in 16 bits of what is computed in fp8 are not kept
            elif not candidates.triton_reason(self.device):
                forms["biases folded"] = FoldedProgram(self._program, backend)
                forms["moments given"] = SummedProgram(self._program, backend)
            self._graphs = GraphCache(forms, backend, size, self._film, self.device)
            self._trajectories = TrajectoryGraphs(self._graphs, self._film, self.device)
        return self._program
