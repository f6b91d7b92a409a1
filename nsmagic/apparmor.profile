# Lets one Python make user namespaces that keep their rights, where AppArmor takes these from programs without a
# profile (kernel.apparmor_restrict_unprivileged_userns = 1, the default of Ubuntu since 23.10).
#
# PYTHON stands for the interpreter; `nsmagic doctor` prints the command that fills it in and loads this.  It grants
# that interpreter, whatever it runs, what every program had before; it takes nothing from anybody.

abi <abi/4.0>,
include <tunables/global>

profile nsmagic "PYTHON" flags=(unconfined) {
  userns,

  include if exists <local/nsmagic>
}
