#!/bin/sh
# On the device: engines for it once, then the self-test, then the server. Each failure ends it.
set -eu
bundle=/bundle
if [ ! -d "$bundle/engines/tensorrt-sm87" ]; then
  mmprod build "$bundle" --trt --flavour tensorrt --target sm87 --precision fp16
fi
mmprod parity selftest "$bundle"
exec mmprod serve /bundle --host 0.0.0.0 --port 8080 --grpc-port 8081 --precision fp16 --backend trt --shadow 0.01 --threads 4 --drain-s 30 --key-file /run/secrets/mmprod-key "$@"
