"""The fast path: a Llama with LoRA trains and generates with fewer kernel launches.

Read `lora` first: it finds PEFT's adapters, and groups linear layers that share an
input. For training follow `linears`, `ops`, `attention`, `sharding` (a model over
several GPUs), `layer`, `tiled_layer` and `kept_inputs` (for long rows), `autograd`,
`loss` and `patch`; for generation `decoding_linears`, `recording`, `static_cache` and
`decoder`. `support` checks which models can run
on the fast path; all others stay on the reference path (PyTorch and PEFT). `kernels`,
`attention_kernels`, `loss_kernels` and `vector_kernels` hold the Triton code, and
`warmup` compiles it while a model is loaded.
Nothing is re-exported: these modules import torch, and only training and generation
call them.
"""
