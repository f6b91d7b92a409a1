# Sourced in the machine by its agent: who runs the job, and in which control group.
#
# Sets job(), which runs /lane/in/job/command. It comes with each job, so that a change of it needs no new image.
# Given: $user and $uid, an ordinary user whose systemd runs (lingering), and finish().

plain() { runuser -u $user -- env -u XDG_RUNTIME_DIR HOME=/home/$user USER=$user "$@"; } # as by su or cron: no PAM session
session() { runuser -l "$1" -c 'cd /src && exec /lane/in/job/command'; } # as by ssh: logind makes a scope for it
chmod 1777 /srv # a folder on the disk for everybody; /tmp is not on every machine
who=$(cat /lane/in/job/as)
echo "lane: up after $(cut -d' ' -f1 /proc/uptime) s, Linux $(uname -r), as $who" >/dev/ttyS0
case $who in
root) # in a unit with Delegate=yes; without systemd, in the hierarchy's root
    job() { /lane/in/job/command; }
    ;;
root-session) # root's login: a scope that is not handed over
    job() { session root; }
    ;;
user-session) # a login; a user manager is there to ask
    job() { session $user; }
    ;;
user-without-cpu) # the same where users get fewer controllers
    mkdir -p /run/systemd/system/user@.service.d
    printf '[Service]\nDelegate=\nDelegate=memory pids\n' >/run/systemd/system/user@.service.d/lane.conf
    systemctl daemon-reload
    systemctl restart user@$uid.service
    job() { session $user; }
    ;;
user-service) # a unit of the user's own systemd that owns its group
    job() {
        runuser -l $user -c 'exec systemd-run --user --quiet --wait --pipe --collect -p Delegate=yes \
            --working-directory=/src /lane/in/job/command'
    }
    ;;
user-lingering) # no login, in a service of root's, as under a hub; but the user's manager runs
    job() { plain /lane/in/job/command; }
    ;;
user) # the same, and no manager either
    if [[ -d /run/systemd/system ]]; then
        rm /var/lib/systemd/linger/$user
        systemctl stop user@$uid.service user-runtime-dir@$uid.service
    fi
    job() { plain /lane/in/job/command; }
    ;;
user-delegated) # no systemd: a group handed over by hand
    group=/sys/fs/cgroup/lane
    echo "+cpu +memory +pids" >/sys/fs/cgroup/cgroup.subtree_control
    mkdir $group
    chown -R $user $group
    python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.delegate", b"1")' $group # it is handed over
    job() { (echo $BASHPID >$group/cgroup.procs && plain /lane/in/job/command); }
    ;;
*) finish 251 ;;
esac
