package cluster

import (
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

var _ = clientcmd.LoadFromFile
var _ = rest.RESTClientForConfigAndClient
var _ = cache.NewReflectorWithOptions
var _ klog.Logger
