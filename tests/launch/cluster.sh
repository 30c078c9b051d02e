#!/usr/bin/env bash
# A SLURM cluster of this one machine, for `make test-slurm`: `cluster.sh start FOLDER`, `cluster.sh stop FOLDER`.
# Needs root and `apt-get install slurmctld slurmd slurm-client munge`. Everything lies in FOLDER; then
# `export SLURM_CONF=FOLDER/slurm.conf`.
set -euo pipefail
action=$1 folder=$(realpath -m "$2") host=$(hostname -s)

if [ "$action" = stop ]; then
  for name in slurmctld slurmd munged; do
    [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")"
  done
  exit 0
fi

mkdir -p "$folder"/{state,spool}
dd if=/dev/urandom of="$folder/munge.key" bs=1024 count=1 status=none
chmod 600 "$folder/munge.key"
cat > "$folder/slurm.conf" <<END
ClusterName=one
SlurmctldHost=$host
AuthInfo=socket=$folder/munge.socket,cred_expire=5
SlurmUser=root
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
NodeName=$host CPUs=$(nproc) RealMemory=$(free -m | awk '/^Mem/ {print int($2 * 0.9)}')
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE
END
echo CgroupPlugin=disabled > "$folder/cgroup.conf"
export SLURM_CONF=$folder/slurm.conf
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
slurmctld
slurmd 2>/dev/null || { echo CgroupPlugin=cgroup/v1 > "$folder/cgroup.conf"; slurmd; }  # before 23.02 it cannot be disabled
for _ in $(seq 60); do
  sinfo --noheader --format=%T 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
echo "no node came up: see $folder/*.log" >&2
exit 1
