package cost

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Heavy puts this process, and with it all that it starts, into a control group of
// the scheduler with the most weight that there is. So other work on the machine
// takes what is left over, and all that is measured competes as equals: outside of
// one, the kernel shares processors among sessions first, and an agent is one.
func Heavy() (undo func() error, err error) {
	err = errors.New("there is no controller of processors")
	for _, v := range []struct{ dir, weight, most string }{
		{"/sys/fs/cgroup/cpu", "cpu.shares", "262144"}, // version 1
		{"/sys/fs/cgroup", "cpu.weight", "10000"},      // version 2
	} {
		if _, missing := os.Stat(filepath.Join(v.dir, "cgroup.procs")); missing != nil {
			continue
		}
		group := filepath.Join(v.dir, "netctl-bench")
		undo := func() error {
			return errors.Join(enter(v.dir), leave(group))
		}
		// It may be there: of a run that was killed.
		if err = os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			continue
		}
		err = errors.Join(os.WriteFile(filepath.Join(group, v.weight), []byte(v.most), 0o600), enter(group))
		if err == nil {
			return undo, nil
		}
		err = errors.Join(err, undo())
	}
	return func() error { return nil }, fmt.Errorf("other work on this machine counts as much as what is measured: no control group for processors: %w", err)
}

// leave removes a control group, once what was killed in it is gone.
func leave(group string) error {
	var err error
	for range 500 {
		if err = os.Remove(group); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// enter moves this process into a control group.
func enter(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0o600)
}
