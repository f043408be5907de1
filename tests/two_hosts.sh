# Two hosts, each with a network of its own, and a cable between them that may be cut:
# unshare --user --map-root-user --net --mount --pid --fork --kill-child
#   bash two_hosts.sh PYTHON PROGRAM FOLDER STAGE
# Runs PROGRAM (mortal_process.py) on both; writes what each says, and how it ended, to FOLDER.
set -e
export PYTHON=$1 PROGRAM=$2 FOLDER=$3 STAGE=$4
mount -t tmpfs none /run
ip netns add other
ip link add here type veth peer name there netns other
ip addr add 10.77.0.1/24 dev here
ip link set here up
ip link set lo up
ip netns exec other ip addr add 10.77.0.2/24 dev there
ip netns exec other ip link set there up
ip netns exec other ip link set lo up
host() {
    # Gloo listens at the address of the host's name.
    printf '127.0.0.1 localhost\n10.77.0.%s host%s\n' $(($1 + 1)) "$1" > "/run/hosts$1"
    code=0
    unshare --mount --uts sh -c "hostname host$1; mount --bind /run/hosts$1 /etc/hosts;
        exec $PYTHON $PROGRAM $1 10.77.0.1:4567 $FOLDER 2 $STAGE" > "$FOLDER/$1.log" 2>&1 || code=$?
    echo $code > "$FOLDER/$1.code"
}
export -f host
host 0 &
ip netns exec other bash -c 'host 1' &
if [ "$STAGE" = pass ]; then
    while [ ! -e "$FOLDER/there" ]; do sleep 0.1; done
    ip link set here down
fi
wait
