package cni

import (
	"context"
	"errors"

	"github.com/netctl/netctl/cni/wire"
)

// Error is an error with a CNI code, as the runtime shows it.
type Error = wire.Error

// The errors that a Backend returns, wrapped with what it knows.
var (
	// ErrExists: this container and interface are attached already.
	ErrExists = errors.New("attached already")
	// ErrInterfaceExists: the namespace has an interface of that name that is
	// not ours.
	ErrInterfaceExists = errors.New("interface exists already")
	// ErrNetnsGone: the namespace ended during the operation.
	ErrNetnsGone = errors.New("network namespace is gone")
	// ErrPoolCooling: no address is free, but some will be soon.
	ErrPoolCooling = errors.New("all free addresses are cooling down")
	// ErrPoolExhausted: no address is free.
	ErrPoolExhausted = errors.New("address pool is exhausted")
	// ErrDuplicateAddress: the address to be given is in use on this node.
	ErrDuplicateAddress = errors.New("address is in use on this node")
	// ErrUnsupported: the configuration asks for what netctl cannot do.
	ErrUnsupported = errors.New("not supported")
	// ErrDiffers: CHECK found a difference.
	ErrDiffers = errors.New("differs from the result of ADD")
	// ErrTryAgain: transient, the runtime should retry.
	ErrTryAgain = errors.New("try again later")
	// ErrUnavailable: no ADD can be served.
	ErrUnavailable = errors.New("not available")
	// ErrLimited: no ADD can be served and running pods suffer.
	ErrLimited = errors.New("not available, and running pods are affected")
)

// advice is an error's code and what to do about it.
type advice struct {
	err  error
	code wire.Code
	msg  string
}

func advices() []advice {
	return []advice{
		{ErrExists, wire.CodeConflict, "this container is attached already: DEL it first"},
		{ErrInterfaceExists, wire.CodeInterface, "the namespace has an interface of that name already: nothing was changed; remove it or use another name"},
		{ErrNetnsGone, wire.CodeNetns, "the network namespace is gone: the sandbox has ended; the runtime must make a new one"},
		{ErrPoolCooling, wire.CodeTryAgain, "no pod address is free on this node yet: released ones cool down, the runtime will retry"},
		{ErrPoolExhausted, wire.CodeUnavailable, "no pod address is free on this node: delete pods, or give the node more addresses (netctl ipam)"},
		{ErrDuplicateAddress, wire.CodeDuplicateIP, "the pod's address is in use on this node: look for a leftover interface or route that bears it"},
		{ErrUnsupported, wire.CodeUnsupported, "the network configuration asks for something that netctl cannot do"},
		{ErrDiffers, wire.CodeCheck, "the pod's network is not as ADD made it: recreate the pod"},
		{ErrTryAgain, wire.CodeTryAgain, "the netctl agent cannot do this at the moment, try again"},
		{ErrLimited, wire.CodeLimited, "the netctl agent cannot add pods, and running pods are affected: see its log"},
		{ErrUnavailable, wire.CodeUnavailable, "the netctl agent cannot add pods: see its log"},
		{context.DeadlineExceeded, wire.CodeTryAgain, "the netctl agent did not finish in time and undid what it had begun: the runtime will retry"},
		{context.Canceled, wire.CodeTryAgain, "the operation was cancelled and undone: the agent is stopping or the plugin was killed"},
	}
}

// asError returns err as the runtime shall see it.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		out := *e
		return &out
	}
	for _, a := range advices() {
		if errors.Is(err, a.err) {
			return &Error{Code: a.code, Msg: a.msg, Details: err.Error()}
		}
	}
	return &Error{Code: wire.CodeInternal, Msg: "the netctl agent met an internal error: see its log", Details: err.Error()}
}
