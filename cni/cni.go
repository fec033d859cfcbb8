// Package cni connects container runtimes to the agent through the Container
// Network Interface, specification versions 0.3.1 to 1.1.0.
//
//	containerd, CRI-O, the lab
//	    | executes, per operation on a pod
//	netctl-cni            packages cni/plugin and cni/shim: standard library only
//	    | unix socket 0600 (package cni/wire), the pod's netns as a descriptor
//	Server                this package: who may ask, what is asked, in which order
//	    | Backend
//	the agent             makes and removes ports
//
// The Server owns everything about the operations that is not networking:
//
//   - Only the agent's own user may ask (SO_PEERCRED), and everything asked is
//     untrusted: names, CNI_ARGS and configuration are validated once, here.
//   - Work on one container is serial, different containers run in parallel,
//     and the number of operations at once is bounded.
//   - A killed ADD leaves nothing behind: when the plugin goes away, the work
//     is cancelled; when it went away before the result was delivered, the
//     attachment is taken back.
//   - No deletion is lost: one that cannot be carried out now waits on disk
//     (package cni/queue) and is carried out before its container is added
//     again.
//   - Until the agent calls Restored, ADD is answered with "try again".
//
// Keys are container ID and interface name, never a pod's name, because a pod
// may come back under its name before the old one is gone.
//
// Install puts the plugin and the network configuration in place. Tests drive
// the real plugin program through libcni against a Server with a Backend of
// their own (server_test.go).
package cni

import (
	"context"
	"net/netip"
	"os"

	"github.com/netctl/netctl/internal/model"
)

// Backend is what the agent does for the Server. Calls for one container never
// overlap, except that GC and Status run beside everything; calls for
// different containers run in parallel. An error that is or wraps an *Error
// reaches the runtime as it is; the errors of errors.go are given their code
// and advice; any other becomes an internal error.
type Backend interface {
	// Add makes the pod's port and returns when packets may flow under
	// published tables. When it fails or the context ends it leaves nothing
	// behind and disturbs nothing that was there.
	Add(ctx context.Context, a Attachment) (Result, error)
	// Del removes the port and releases its addresses. The absent is success;
	// the namespace may be gone.
	Del(ctx context.Context, id ID) error
	// Check compares the port with what Add returned.
	Check(ctx context.Context, a Attachment, prev Result) error
	// GC removes every attachment that is not in valid, goes on after errors
	// and joins them. It must not remove one whose Add is not over.
	GC(ctx context.Context, valid []ID) error
	// Status fails only when no ADD could be served: ErrUnavailable, or
	// ErrLimited when running pods suffer as well. A full address pool is not
	// such a reason: it would take the node out of service.
	Status(ctx context.Context) error
}

// ID identifies an attachment.
type ID struct {
	ContainerID string
	IfName      string
}

// String returns "container/interface".
func (id ID) String() string { return id.ContainerID + "/" + id.IfName }

// Attachment is what ADD and CHECK are about. The values are validated; maps
// and slices belong to the receiver.
type Attachment struct {
	ID
	Network string // the network's name in the configuration
	// Netns is the pod's network namespace, checked to be one and not to be
	// the agent's. Borrowed: valid until the call returns.
	Netns *os.File
	// NetnsPath is where the runtime sees it, for records: when nothing is
	// there any more, the sandbox has ended.
	NetnsPath string
	Pod       Pod
	// Addresses are asked for by the runtime (capability "ips"); none means
	// any.
	Addresses    []netip.Addr
	PortMappings []PortMapping
	Bandwidth    Bandwidth
	// Annotations are the pod's (capability io.kubernetes.cri.pod-annotations).
	Annotations map[string]string
}

// Pod says whose sandbox it is, as far as the runtime said (CNI_ARGS). All
// fields are empty outside Kubernetes.
type Pod struct {
	Name model.Name
	UID  string
}

// PortMapping is a hostPort.
type PortMapping struct {
	HostIP        netip.Addr // the zero Addr: every address of the node
	HostPort      uint16
	ContainerPort uint16
	Protocol      model.Protocol
}

// Bandwidth limits the pod's traffic, in bits per second and bits; 0 is no
// limit. Ingress is what the pod receives.
type Bandwidth struct {
	IngressRate, IngressBurst uint64
	EgressRate, EgressBurst   uint64
}

// Result is what Add made, on the interface of the attachment.
type Result struct {
	MTU       int
	Addresses []netip.Prefix
	Routes    []Route
}

// Route is a route in the pod. An invalid Gateway means that Dst is on-link.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr
}
