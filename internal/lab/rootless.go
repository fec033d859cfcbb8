package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Without root a lab lives inside a user namespace, where its user is root over
// the namespaces made there:
//
//	netctl lab up ──▶ holder: user, mount and network namespace, /run of its own
//	        └─ nsenter into it ─▶ netctl lab up, as root inside
//
// The holder does nothing but exist until the lab is taken down. Every later
// command enters the same namespaces first. Entering a user namespace takes a
// process of one thread, which no Go program is, so util-linux' nsenter does it.
const (
	// HoldCommand is the hidden subcommand of `netctl lab` that runs HoldMain.
	HoldCommand = "hold"

	insideVariable = "NETCTL_LAB_INSIDE"
	readyLine      = "ready\n"
)

// EnterUserNamespace replaces this process by one inside the lab's user
// namespace when it does not run as root. It returns where nothing needs to be
// done, and on errors.
func EnterUserNamespace(command, lab string) error {
	switch command {
	case "lab", "serve", "fetch", "send", "ping", ContainerCommand, HoldCommand:
		return nil // these run in whatever namespace they are in
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if !labName.MatchString(lab) {
		return fmt.Errorf("lab name %q: use 1 to 16 lower-case letters, digits and dashes", lab)
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("netctl-lab-%d", os.Geteuid()))
	if err := privateDir(dir); err != nil {
		return err
	}
	pidFile := holderFile(dir, lab)
	pid, ok := livingHolder(pidFile)
	if !ok {
		if command != "up" && command != "demo" && command != "down" {
			return fmt.Errorf("%w: %q is not up; start it with 'netctl lab up --name %s'", ErrNoLab, lab, lab)
		}
		var err error
		if pid, err = startHolder(pidFile); err != nil {
			return err
		}
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return errors.New("running without root needs nsenter (package util-linux)")
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	args := append([]string{"nsenter", "-t", strconv.Itoa(pid), "-U", "-m", "-n", "--preserve-credentials", exe}, os.Args[1:]...)
	env := append(os.Environ(), "NETCTL_LAB_ROOT="+dir, insideVariable+"="+strconv.Itoa(pid))
	return fmt.Errorf("enter the lab's user namespace: %w", syscall.Exec(nsenter, args, env)) //nolint:gosec // the user's own command, once more
}

// privateDir makes a directory that nobody else may have prepared.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create the directory of labs: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the directory of labs: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !info.IsDir() || !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s exists and is not a private directory of yours; remove it or set TMPDIR", dir)
	}
	return nil
}

// livingHolder returns the holder that a file names, if it still is that.
func livingHolder(pidFile string) (int, bool) {
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, false
	}
	var pid int
	var started string
	if _, err := fmt.Sscan(string(data), &pid, &started); err != nil || startTime(pid) != started || ended(pid) {
		return 0, false
	}
	return pid, true
}

// startHolder starts the process whose namespaces are the lab's.
func startHolder(pidFile string) (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.Command(exe, "lab", HoldCommand) //nolint:noctx // it outlives us
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Setsid:      true,
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, fmt.Errorf("start a user namespace: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a user namespace: %w; this kernel does not let users make them: run as root", err)
	}
	line := make([]byte, len(readyLine))
	if n, _ := out.Read(line); string(line[:n]) != readyLine {
		return 0, errors.Join(errors.New("prepare the user namespace: the holder ended; run as root"), cmd.Wait())
	}
	pid := cmd.Process.Pid
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d %s\n", pid, startTime(pid)), 0o600); err != nil {
		return 0, errors.Join(fmt.Errorf("remember the holder: %w", err), cmd.Process.Kill(), cmd.Wait())
	}
	return pid, cmd.Process.Release()
}

// HoldMain keeps the user namespace of a lab until it is told to end.
func HoldMain(ctx context.Context) error {
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{target: "/", flags: syscall.MS_REC | syscall.MS_PRIVATE},
		{source: "tmpfs", target: "/run", kind: "tmpfs"},
		{source: "sysfs", target: "/sys", kind: "sysfs"},
	} {
		if err := syscall.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("prepare %s of the user namespace: %w", m.target, err)
		}
	}
	// Below the new /run lies the machine's own, still listed among the mounts: the
	// directory of namespaces must be found to be a mount of ours.
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("prepare %s of the user namespace: %w", netnsDir, err)
	}
	err := syscall.Mount(netnsDir, netnsDir, "none", syscall.MS_BIND, "")
	if err == nil {
		err = syscall.Mount("", netnsDir, "none", syscall.MS_SHARED, "")
	}
	if err != nil {
		return fmt.Errorf("share %s of the user namespace: %w", netnsDir, err)
	}
	if _, err := os.Stdout.WriteString(readyLine); err != nil {
		return fmt.Errorf("report to the starter: %w", err)
	}
	<-ctx.Done()
	return nil
}

// endHolder ends the user namespace that this process runs in, if it does, and
// returns when nobody can take it for a living one any more.
func endHolder(root, lab string) {
	pid, err := strconv.Atoi(strings.TrimSpace(os.Getenv(insideVariable)))
	if err != nil {
		return
	}
	_ = os.Remove(holderFile(root, lab))
	_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
	for end := time.Now().Add(killWait); !ended(pid) && time.Now().Before(end); {
		pause(killPoll)
	}
}

// holderFile names the holder of a lab.
func holderFile(root, lab string) string { return filepath.Join(root, "."+lab+".holder") }
