"""The bench's peer on MLServer: a runtime for `mlserver start`, its graph in the settings."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Graph(MLModel):
    async def load(self):
        extra = self.settings.parameters.extra
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = extra["threads"]
        self.session = onnxruntime.InferenceSession(extra["graph"], options)
        return True

    async def predict(self, payload):
        inputs = {i.name: NumpyCodec.decode_input(i).astype("int32") for i in payload.inputs}
        (name,) = (output.name for output in self.session.get_outputs()[:1])
        rows = self.session.run([name], inputs)[0]
        output = NumpyCodec.encode_output(name, rows)
        return InferenceResponse(model_name=self.name, outputs=[output])
