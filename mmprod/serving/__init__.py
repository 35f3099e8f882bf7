"""The server of a bundle: Open Inference Protocol v2 over REST and gRPC. Torch-free.

    clients -> door (key, host, id, limits) -> rest | grpc_edge -> service -> models
    models: graph.NAME, text_to_image, ... -> batchers (one per graph) -> runners

`run_server(settings)` serves until SIGTERM; see docs/serve.md.
"""
