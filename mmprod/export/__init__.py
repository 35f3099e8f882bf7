"""Export: graph modules -> ONNX files in each precision -> a bundle (`pipeline.export_run`)."""
