#!/usr/bin/env bash
# Submits one verb to a running Ray cluster, follows its log, and leaves with status 0 when it succeeded. From anywhere, with
# `pip install 'ray[default]==2.60.0'` alone; the checkout travels with the job, so a cluster whose image has clipsan's dependencies
# runs this checkout's code. Paths in the settings must be absolute: the job runs in a copy of the package.
#
#   RAY_ADDRESS=http://head:8265 deploy/submit.sh scan data=webdataset data.path='s3://bucket/{00000..09999}.tar' \
#       model.path=/shared/suspect out=/shared/runs/scan cluster.workers=64
#
# Edit: nothing here; deploy/runtime_env.yaml for the MLflow server. A cluster that asks for a token: RAY_AUTH_MODE=token and
# RAY_AUTH_TOKEN. Ctrl-C leaves the job running; `ray job list`, `ray job stop ID` and `ray job logs ID --follow` know it.
# Run in the tests against a local head.

set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# The package as pip would lay it out: the job finds it before one that its image has.
package=$(mktemp -d)
trap 'rm -rf "$package"' EXIT
mkdir "$package/clipsan"
cp -R pipeline stages conf "$package/clipsan/"
cp -R pipeline/api/. "$package/clipsan/"
find "$package" -name __pycache__ -prune -exec rm -rf {} +
# A submitted job joins its cluster; a private Ray on the head would be the default.
ray job submit --address "${RAY_ADDRESS:-http://127.0.0.1:8265}" --runtime-env deploy/runtime_env.yaml --working-dir "$package" \
    -- python -m clipsan.pipeline "$@" cluster.address=auto
