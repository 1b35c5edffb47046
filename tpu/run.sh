#!/usr/bin/env bash
# Runs one command on every host of an existing TPU VM slice and waits for all of them.
#
#   TPU_NAME=my-v4-32 ZONE=us-central2-b tpu/run.sh \
#     python3 -m diffusion_jax.train --config configs/... --multihost \
#       --workdir gs://bucket/runs/x
#
#   TPU_NAME, ZONE  which slice
#   PROJECT         its project, if not gcloud's default
#   REMOTE_DIR      where the code lies on each host, relative to home; diffusion_jax
#   ATTEMPTS        how often to run the command until it succeeds; 1
#   RETRY_SECONDS   pause between attempts; 30
#   DRY_RUN         1 prints the gcloud command and runs nothing
#
# Training resumes from the last checkpoint in its workdir, so running the same line
# again, by hand or with ATTEMPTS, continues a run that was interrupted.
set -euo pipefail

: "${TPU_NAME:?set TPU_NAME to the name of the TPU VM}"
: "${ZONE:?set ZONE to the zone of the TPU VM}"
REMOTE_DIR=${REMOTE_DIR:-diffusion_jax}
ATTEMPTS=${ATTEMPTS:-1}
RETRY_SECONDS=${RETRY_SECONDS:-30}

if (($# == 0)); then
  echo "usage: TPU_NAME=... ZONE=... $0 COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
if ! [[ $ATTEMPTS =~ ^[1-9][0-9]*$ ]]; then
  echo "ATTEMPTS must be a whole number of at least 1, not '$ATTEMPTS'" >&2
  exit 2
fi

# %q keeps every argument one argument in the shell of the hosts. JAX_PLATFORMS makes a
# host that does not see its chips fail, where it would train on its CPU otherwise.
remote="cd $(printf '%q' "$REMOTE_DIR") && exec env JAX_PLATFORMS=tpu$(printf ' %q' "$@")"

call=(gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$ZONE")
if [[ -n ${PROJECT:-} ]]; then
  call+=("--project=$PROJECT")
fi
call+=(--worker=all "--command=$remote")

if [[ ${DRY_RUN:-} == 1 ]]; then
  printf '%q ' "${call[@]}"
  echo
  exit 0
fi

for ((attempt = 1; ; attempt++)); do
  status=0
  "${call[@]}" || status=$?
  if ((status == 0 || attempt == ATTEMPTS)); then
    exit "$status"
  fi
  echo "attempt $attempt of $ATTEMPTS exited with $status;" \
    "the next one starts in $RETRY_SECONDS s" >&2
  sleep "$RETRY_SECONDS"
done
