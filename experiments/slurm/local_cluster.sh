#!/usr/bin/env bash
# A real Slurm on this machine: experiments/slurm/local_cluster.sh install|start|stop|status
# Debian's slurm-wlm (controller and node daemon on the loopback) and munge; as root, for a container or a virtual machine.
# Two partitions: jobs of `urgent` pre-empt those of `spare`, which get GRACE seconds and go back into the queue. Everything but
# munge's own files lies in $SLURM_LOCAL (/tmp/mamllit-slurm); use it with `export SLURM_CONF=$SLURM_LOCAL/slurm.conf`.
set -euo pipefail
folder=${SLURM_LOCAL:-/tmp/mamllit-slurm}
export SLURM_CONF=$folder/slurm.conf
host=$(hostname -s)

need_root() { ((EUID == 0)) || { echo "run this as root: slurmd and munged need it" >&2; exit 1; }; }

running() { [[ -f $1 ]] && kill -0 "$(cat "$1")" 2>/dev/null; }

end() { # PIDFILE: end what this script has started
  running "$1" || { rm -f "$1"; return 0; }
  kill "$(cat "$1")"
  for _ in $(seq 100); do running "$1" || break; sleep 0.1; done
  rm -f "$1"
}

case ${1:-} in
  install)
    need_root
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
    ;;
  start)
    need_root
    mkdir -p "$folder"/{state,spool,log} /run/munge
    chown munge: /run/munge
    cat >"$SLURM_CONF" <<CONF
ClusterName=mamllit
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
AuthInfo=cred_expire=10
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=60
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=5,bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=spare Nodes=$host Default=YES PriorityTier=1 GraceTime=${GRACE:-300} PreemptMode=REQUEUE MaxTime=INFINITE
PartitionName=urgent Nodes=$host PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
CONF
    if ! munge -n >/dev/null 2>&1; then
      runuser -u munge -- munged --pid-file=/run/munge/munged.pid
      touch "$folder/munge_is_ours"
    fi
    slurmctld
    slurmd
    for _ in $(seq 60); do
      [[ $(sinfo --noheader --partition spare --format %T 2>/dev/null) == idle ]] && { sinfo; exit 0; }
      sleep 1
    done
    echo "the node did not become idle within a minute; see $folder/log" >&2
    exit 1
    ;;
  stop)
    need_root
    end "$folder/slurmd.pid"
    end "$folder/slurmctld.pid"
    [[ -f $folder/munge_is_ours ]] && { end /run/munge/munged.pid; rm -f "$folder/munge_is_ours"; }
    echo "stopped"
    ;;
  status) sinfo && squeue ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
