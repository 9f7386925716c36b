// The controllers of cert-manager that issue certificates from a CA. Its own module holds the controllers, but no program.
package main

import (
	"context"
	"flag"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cert-manager/cert-manager/pkg/controller"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/approver"
	"github.com/cert-manager/cert-manager/pkg/controller/certificaterequests/ca"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/issuing"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/keymanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/readiness"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/requestmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/revisionmanager"
	"github.com/cert-manager/cert-manager/pkg/controller/certificates/trigger"
	"github.com/cert-manager/cert-manager/pkg/controller/clusterissuers"
	"github.com/cert-manager/cert-manager/pkg/controller/issuers"
	_ "github.com/cert-manager/cert-manager/pkg/issuer/ca"
	"k8s.io/klog/v2"
)

var names = []string{
	approver.ControllerName, ca.CRControllerName, clusterissuers.ControllerName, issuers.ControllerName,
	issuing.ControllerName, keymanager.ControllerName, readiness.ControllerName, requestmanager.ControllerName,
	revisionmanager.ControllerName, trigger.ControllerName,
}

func main() {
	kubeconfig := flag.String("kubeconfig", "", "the administrator's kubeconfig")
	namespace := flag.String("cluster-resource-namespace", "kube-system", "the namespace of the Secrets of ClusterIssuers")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	options := controller.ContextOptions{Kubeconfig: *kubeconfig}
	options.ClusterResourceNamespace = *namespace
	options.CertificateRequestMinimumBackoffDuration = time.Second
	options.CertificateRequestMaximumBackoffDuration = time.Minute
	factory, err := controller.NewContextFactory(ctx, options)
	if err != nil {
		klog.Exitf("no connection to the API server: %v", err)
	}
	for _, name := range names {
		running, err := controller.Known()[name](factory)
		if err != nil {
			klog.Exitf("%s: %v", name, err)
		}
		go func() {
			if err := running.Run(2, ctx); err != nil {
				klog.Exitf("%s: %v", name, err)
			}
		}()
	}
	shared, err := factory.Build()
	if err != nil {
		klog.Exitf("no connection to the API server: %v", err)
	}
	shared.SharedInformerFactory.Start(ctx.Done())
	shared.KubeSharedInformerFactory.Start(ctx.Done())
	klog.Info("cert-manager runs")
	<-ctx.Done()
}
