# Sourced by freeze.sh and run.sh: how the machine is made. A frozen machine wakes up only in one made just alike.
#
# qemu_arguments ROOT JOB OUT SITE CONSOLE STATUS APPEND    sets $arguments
#   ROOT…SITE are drives (/dev/vda to /dev/vdd), CONSOLE and STATUS files for the first and third serial port;
#   the second, for the job's output, is added by the caller.
: "${LANE_CACHE:=/var/cache/nsmagic-lane}" "${LANE_MEMORY:=2G}"
disk_bytes=$((64 << 20)) # of the drives for the job and for what comes back

qemu_arguments() {
    # One thread: a machine of several processors, emulated by several threads, breaks now and then when its
    # kernel patches itself.
    local machine=(-accel tcg,thread=single -cpu max)
    [[ ${LANE_ACCEL:-tcg} == kvm ]] && machine=(-accel kvm -cpu host)
    arguments=("${machine[@]}" -machine q35 -smp 1 -m "$LANE_MEMORY" -nodefaults -display none -no-reboot
        -kernel "$images/vmlinuz" -initrd "$images/initrd.img"
        -append "console=ttyS0 loglevel=4 panic=-1 reboot=t mitigations=off random.trust_cpu=on $7"
        -drive "file=$1,if=virtio,format=raw" -drive "file=$2,if=virtio,format=raw"
        -drive "file=$3,if=virtio,format=raw" -drive "file=$4,if=virtio,format=raw"
        -chardev "file,id=console,path=$5" -device isa-serial,chardev=console,index=0
        -chardev "file,id=status,path=$6" -device isa-serial,chardev=status,index=2,iobase=0x3e8,irq=4)
}

# kernel_words INIT    what the kernel is told so that it starts this init
kernel_words() {
    case $1 in
    systemd) echo "systemd.unit=lane.target systemd.show_status=0 systemd.unified_cgroup_hierarchy=1" ;;
    mini) echo "lane.init=/lane/mini-init" ;;
    *)
        echo "no such init: $1" >&2
        return 1
        ;;
    esac
}
