package rivals

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/netctl/netctl/internal/kernel"
)

// RelayCommand is the argument that makes this program a relay.
const RelayCommand = "serve-as-a-relay"

// RelayMain is the least that a program between two pods can do: two TUNs, and a
// goroutine for each that reads from one and writes to the other, waiting where the
// Go runtime has everything wait. It knows no addresses, so it is also the most that a
// router in Go can reach that is written in this way.
func RelayMain() error {
	files := make([]*os.File, 2)
	for i := range files {
		ns, err := kernel.OpenNamespace(filepath.Join(kernel.RuntimeDir, relayNamespace(i)))
		if err != nil {
			return err
		}
		addr := []netip.Prefix{netip.PrefixFrom(relayAddr(i), 32)}
		tun, err := kernel.CreateTUNIn(ns, kernel.Interface{
			Name: "eth0", MTU: 1420, TxQueueLen: 1000, Addresses: addr, Routes: kernel.DefaultRoutes(addr),
		}, kernel.AllOffloads())
		if err := errors.Join(err, ns.Close()); err != nil {
			return err
		}
		fd, err := kernel.DupFD(tun.FD())
		if err != nil {
			return err
		}
		if err := syscall.SetNonblock(fd, true); err != nil {
			return err
		}
		files[i] = os.NewFile(uintptr(fd), "tun")
	}
	for i := range files {
		go pass(files[i], files[1-i])
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, os.Stdin) // until the parent is gone
	return err
}

// pass copies packets; what cannot be written is lost, as in every router.
func pass(from, to *os.File) {
	buf := make([]byte, 1<<17)
	for {
		n, err := from.Read(buf)
		if err != nil {
			fmt.Fprintln(os.Stderr, "relay:", err)
			return
		}
		_, _ = to.Write(buf[:n])
	}
}

func relayNamespace(i int) string { return fmt.Sprintf("%srelay%d", Prefix, i+1) }
func relayAddr(i int) netip.Addr  { return netip.AddrFrom4([4]byte{10, 11, byte(i + 1), 2}) }

// Relay is two namespaces with such a program between them.
func Relay() (*Path, error) {
	remove, err := Namespaces(relayNamespace(0), relayNamespace(1))
	if err != nil {
		return nil, err
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	cmd := exec.Command(exe, RelayCommand) //nolint:noctx // Close ends it
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, errors.Join(err, remove())
	}
	end := func() error {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		return remove()
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("start the relay: %w", err), end())
	}
	return &Path{From: relayNamespace(0), To: relayNamespace(1), Addr: relayAddr(1), Carriers: []int{cmd.Process.Pid}, Close: end}, nil
}
