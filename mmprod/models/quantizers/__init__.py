"""Vector quantizers, one paper one file, behind the interface of `base.Quantizer`."""
