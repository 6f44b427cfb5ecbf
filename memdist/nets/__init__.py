"""Networks: pure `nn.Module`s made from plain keyword arguments, without configuration, loss or data."""
