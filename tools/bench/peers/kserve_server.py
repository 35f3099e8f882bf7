"""The bench's peer on KServe: `python kserve_server.py GRAPH INPUT THREADS PORT`."""

import sys

import onnxruntime
from kserve import InferOutput, InferResponse, Model, ModelServer


class Graph(Model):
    def __init__(self, name):
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(sys.argv[3])
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)
        self.output = self.session.get_outputs()[0].name
        self.ready = True

    def predict(self, payload, headers=None):
        inputs = {i.name: i.as_numpy().astype("int32") for i in payload.inputs}
        rows = self.session.run([self.output], inputs)[0]
        output = InferOutput(self.output, list(rows.shape), "FP32")
        output.set_data_from_numpy(rows, binary_data=False)
        return InferResponse(payload.id or "1", self.name, [output])


if __name__ == "__main__":
    port = int(sys.argv[4])
    model = Graph("graph")
    sys.argv = sys.argv[:1]
    server = ModelServer(http_port=port, enable_grpc=False, workers=1, access_log_format=None)
    server.start([model])
