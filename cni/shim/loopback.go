package shim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/netctl/netctl/cni/wire"
)

// The loopback plugin: containerd, unless told otherwise, runs a plugin of
// this name beside the network and fails every pod when there is none. All it
// does is set lo up, which needs no agent.

// loopbackWait bounds one netlink exchange.
const loopbackWait = 2 * time.Second

func loopback(req *wire.Request, conf *config) outcome {
	var (
		out json.RawMessage
		err *wire.Error
	)
	switch req.Command {
	case wire.Add:
		out, err = loopbackAdd(req, conf)
	case wire.Check:
		err = inNetns(req.Netns, func() error {
			up, err := loopbackUp()
			if err == nil && !up {
				err = errors.New("the loopback interface is down")
			}
			return err
		})
	case wire.Del:
		// Best effort: whatever fails, the namespace is on its way out.
		if req.Netns != "" {
			_ = inNetns(req.Netns, func() error { return setLoopback(false) })
		}
	}
	if err != nil {
		err.CNIVersion = conf.CNIVersion
		return fail(err)
	}
	return outcome{Response: wire.Response{Output: out}}
}

func loopbackAdd(req *wire.Request, conf *config) (json.RawMessage, *wire.Error) {
	var v6 bool
	err := inNetns(req.Netns, func() error {
		if err := setLoopback(true); err != nil {
			return err
		}
		v6 = loopbackHas6()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if prev := bytes.TrimSpace(conf.PrevResult); len(prev) > 0 && !bytes.Equal(prev, []byte("null")) {
		return conf.PrevResult, nil // a chained plugin hands on what came before it
	}
	return loopbackResult(req, conf.CNIVersion, v6), nil
}

func loopbackResult(req *wire.Request, version string, v6 bool) json.RawMessage {
	type iface struct {
		Name    string `json:"name"`
		Mac     string `json:"mac"`
		Sandbox string `json:"sandbox"`
	}
	type ip struct {
		Version   string `json:"version,omitempty"` // until 0.4.0
		Interface int    `json:"interface"`
		Address   string `json:"address"`
	}
	result := struct {
		CNIVersion string  `json:"cniVersion"`
		Interfaces []iface `json:"interfaces"`
		IPs        []ip    `json:"ips"`
	}{
		CNIVersion: version,
		Interfaces: []iface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: req.Netns}},
		IPs:        []ip{{Version: "4", Address: "127.0.0.1/8"}},
	}
	if v6 {
		result.IPs = append(result.IPs, ip{Version: "6", Address: "::1/128"})
	}
	if version != "0.3.1" && version != "0.4.0" {
		for i := range result.IPs {
			result.IPs[i].Version = ""
		}
	}
	out, err := json.Marshal(result)
	if err != nil { // strings always marshal
		return nil
	}
	return out
}

// inNetns runs fn on a thread inside the namespace and lets that thread die.
func inNetns(path string, fn func() error) *wire.Error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be used again
		done <- func() error {
			fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
			if err != nil {
				return fmt.Errorf("open: %w", err)
			}
			defer func() { _ = syscall.Close(fd) }()
			if _, _, errno := syscall.RawSyscall(setnsNumber(), uintptr(fd), syscall.CLONE_NEWNET, 0); errno != 0 {
				return fmt.Errorf("enter: %w", errno)
			}
			return fn()
		}()
	}()
	err := <-done
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ENOENT):
		return wire.Errorf(wire.CodeNetns, "network namespace %.200q is gone: the sandbox has ended", path)
	default:
		return wire.Errorf(wire.CodeInternal, "loopback interface in network namespace %.200q: %v", path, err)
	}
}

// setnsNumber is the number of setns(2), which package syscall lacks.
func setnsNumber() uintptr {
	switch runtime.GOARCH {
	case "amd64":
		return 308
	case "386":
		return 346
	case "arm":
		return 375
	case "ppc64", "ppc64le":
		return 350
	case "s390x":
		return 339
	default: // the generic table: arm64, riscv64, loong64
		return 268
	}
}

// loopbackHas6 reports whether lo bears ::1 in the thread's namespace, which
// it does not where IPv6 is switched off.
func loopbackHas6() bool {
	b, err := os.ReadFile("/proc/thread-self/net/if_inet6")
	return err == nil && bytes.Contains(b, []byte("00000000000000000000000000000001 01 "))
}
