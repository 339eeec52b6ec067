"""The one place for numeric tolerances, each with the measurement behind it (fp32 on CPU unless said otherwise)."""

from __future__ import annotations

import torch

# Relative L2 to the published code's outputs. Measured: 0 (bit-equal) for the forward pass, below 1.5e-6 for
# trajectories of 10 and 25 steps, on one AVX-512 machine; other instruction sets round differently.
FORWARD_L2 = 1e-5
TRAJECTORY_L2 = 1e-4

# Largest difference between images of one request in other batch splits. Measured: 0 (equal bits) for
# batches of 1, 4 and 35 with one and with two threads.
BATCH_SPLIT_ABS = 1e-4

# DDIM inversion and back, 50 steps, unclipped, with the ideal denoiser of one image. Measured: 4e-3.
ROUND_TRIP_ABS = 2e-2

# Relative L2 between an encoder and the same network called by hand (other batch size, layer hook). Measured: 5e-7.
ENCODER_L2 = 1e-5

# The same between onnxruntime and torch. Measured: 5e-7.
ENCODER_ONNX_L2 = 1e-5

# The same between CUDA, where TF32 may be on, and CPU.
ENCODER_CUDA_L2 = 1e-3

# Largest difference to PIL's resizing, which rounds to 8-bit levels after each direction. Measured: 1.0 levels; with
# two halvings before, which round up every time: 2.3 levels.
RESIZE_ABS = 1.5 / 127.5
RESIZE_HALVED_ABS = 3 / 127.5

# What an encoder sees, against its own image processor, which rounds resized images to 8 bits: relative L2 error.
# Measured over all processors of transformers that are matched: at most 0.005 (0.002 where no std below 1 divides).
PROCESSOR_L2 = 0.006

# An operator's relative L2 error against float64, in multiples of plain PyTorch's at the same dtype, or of the floor
# where plain PyTorch happens to be nearly exact. Measured: at most 1.5 in fp32 and 1.0 in bf16 and fp16.
OP_ERROR_RATIO = 2.0
OP_ERROR_FLOOR = {torch.float32: 5e-8, torch.bfloat16: 1e-3, torch.float16: 1e-4}

# Relative L2 error of float32 convolutions after Winograd against float64. Measured over 120 kinds: at most 9e-7, where
# PyTorch's own have at most 1.2e-6.
WINOGRAD_L2 = 1.2e-6

# The same between engines and the fp32 network, for one evaluation. Measured: 4e-6 for native fp32 on s.
ENGINE_FP32_L2 = 2e-5

# Largest difference between a crop that is computed alone and the same crop of everything resized in float64.
# Measured: 1.2e-7.
CROP_FIRST_ABS = 1e-6

# Bytes of memory that strips up to 1,000,000 x 9 pixels take beyond an ordinary photograph (measured: 290e6, of which
# the longest one's floats are 108e6), and a black and white image of 169 megapixels beyond what the process holds
# (measured: 379e6, twice the image at a byte a pixel; 202e6 above the peak of importing PyTorch).
STRIP_BYTES = 450e6
HUGE_BYTES = 450e6

# Largest and mean difference, in 8-bit levels, between what an encoder sees and its family's own transform, which
# rounds to 8 bits after each direction of resizing. Measured over odd sizes: 1.1 and 0.29; one pixel off: at least 2.1
# in the mean.
VIEW_LEVELS = 1.5
VIEW_MEAN_LEVELS = 0.4

# Bytes of memory that the playground takes to refuse an upload of 169 megapixels. Measured: 0 to 2e6.
UPLOAD_BYTES = 50e6
# The same images with one thread and with two. Measured: 1.8e-4 after two steps of the eager engine in fp32 (one
# evaluation differs by 1.6e-6, which the first step magnifies).
THREADS_ABS = 2e-3
