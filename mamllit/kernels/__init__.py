"""CPU operators that meta-gradients are made of; opt-in, each equal to its plain form by a test.

Under `torch.func.vmap` and two derivatives, PyTorch's layers take many times longer than their arithmetic. The operators here
have derivatives of any order, made of each other, and rules for a batch of tasks. Used by `Conv4(implementation="fast")`
(`mamllit.backbones.fast`) and by the engine (`mamllit.engine.cpu`, `mamllit.engine.recording`), and by nobody else.

- `conv`: a convolution whose weights differ per task.
- `norm`: batch statistics norm, shift and ReLU, whose derivatives are a handful of passes over memory.
- `norm_pool`: the same with 2x2 max-pooling: 0.79 of a step's time on mini-ImageNet 1-shot, 0.82 with 5 shots.
- `matmul`: float32 products by oneDNN on AVX-512 CPUs that are not Intel's: 0.65 of a step's time on Omniglot 20-way.
- `malloc`: freed memory is kept: 0.4 of an evaluation's time on mini-ImageNet.

`experiments/benchmarks/kernels.py` measures what each brings to a whole step; dated figures are in docs/log/benchmarks.md.
"""
