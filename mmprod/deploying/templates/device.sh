#!/bin/sh
# On the device: engines for it once, then the self-test, then the server. Each failure ends it.
set -eu
bundle=/bundle
if [ ! -d "$$bundle/engines/tensorrt-${target}" ]; then
  mmprod build "$$bundle" --trt --flavour tensorrt --target ${target} --precision ${precision}
fi
mmprod parity selftest "$$bundle"${report}
exec ${serve} "$$@"
