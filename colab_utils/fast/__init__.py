"""The fast path: a Llama with LoRA trains and answers in fewer, larger GPU kernels.

Read `lora` first: where PEFT put the adapters, and linear layers as groups that share
an input. For training follow `linears`, `ops`, `attention`, `layer`, `autograd`, `loss`
and `patch`; for answering `static_cache` and `decoder`. `support` says which models can
run here; all others stay on the reference path (PyTorch and PEFT). `kernels` and
`attention_kernels` hold the Triton code, and `warmup` compiles it while a model is
loaded. Nothing is re-exported: these modules import torch, and only training and
generation call them.
"""
