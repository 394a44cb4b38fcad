"""Layers whose weights are computed or shared over time: recurrent nets, convolutions with weights of their own."""

from __future__ import annotations

from fsdtool.network.functions.known import register

register("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
register("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
