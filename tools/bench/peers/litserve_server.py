"""The bench's peer on LitServe: `python litserve_server.py GRAPH INPUT THREADS PORT`. JSON
`{"rows": [[...]]}` in, `{"rows": [[...]]}` out, batches of up to 16.
"""

import sys

import litserve
import numpy as np
import onnxruntime


class Graph(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(sys.argv[3])
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)

    def decode_request(self, request):
        return np.array(request["rows"][0], np.int32)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, rows):
        return self.session.run(None, {sys.argv[2]: rows})[0]

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"rows": [output.tolist()]}


if __name__ == "__main__":
    api = Graph(max_batch_size=16, batch_timeout=0.0)
    server = litserve.LitServer(api, accelerator="cpu", timeout=60)
    server.run(
        host="127.0.0.1", port=int(sys.argv[4]), generate_client_file=False, log_level="error"
    )
