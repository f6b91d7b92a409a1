/*
 * _ffi.csrc.c - where Python meets the native runtime.
 *
 * cffi includes Python.h before this text.  The one thing that needs Python itself: a process cloned by
 * hand must be told to CPython as a fork, or its locks, its thread ids and its random state would be
 * those of the launcher.
 */
#include "nsmagic.h"

int nsm_spawn_python(struct nsm_plan *plan, struct nsm_entry *entries);
int nsm_snapshot_python(struct nsm_snapshot *snapshot, int keep);

int nsm_spawn_python(struct nsm_plan *plan, struct nsm_entry *entries)
{
    PyGILState_STATE state = PyGILState_Ensure(); /* cffi has let go of the interpreter around us */
    PyOS_BeforeFork();
    pid_t child = nsm_spawn(plan, entries);
    if (child == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(state);
    return child;
}

int nsm_snapshot_python(struct nsm_snapshot *snapshot, int keep)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    pid_t child = nsm_snapshot(snapshot, keep);
    if (child == 0)
        PyOS_AfterFork_Child(); /* only now, when it wakes: until then it touches no page */
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(state);
    return child;
}
