#!/usr/bin/env bash
# Tells Ray that this spot instance is about to be taken: spot_watch.sh HEAD:PORT
# Asks the instance's metadata every 5 s; on a notice, Ray drains the node, and its runs keep a
# checkpoint and go on elsewhere. Ends once it has told.
set -euo pipefail

head=$1
metadata=${METADATA:-http://169.254.169.254}
every_s=${EVERY_S:-5}
notice_s=110

token() {
  curl --silent --fail --max-time 2 --request PUT "$metadata/latest/api/token" \
    --header "X-aws-ec2-metadata-token-ttl-seconds: 60"
}

# Succeeds once there is a notice; the metadata answers 404 until then.
notice() {
  local key
  key=$(token) || return 1
  curl --silent --fail --max-time 2 "$metadata/latest/meta-data/spot/instance-action" \
    --header "X-aws-ec2-metadata-token: $key" >/dev/null
}

until notice; do
  sleep "$every_s"
done
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token}
ray drain-node --address "$head" \
  --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot instance" \
  --deadline-remaining-seconds "$notice_s"
