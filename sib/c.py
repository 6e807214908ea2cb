exec(open("a.py").read().split("@dataclasses")[0])
import torchvision
@case
def half_all():
    m=live(nn.Sequential(Rep(3,8),nn.GroupNorm(2,8),nn.AdaptiveAvgPool2d(1),nn.Flatten(),nn.LayerNorm(8),nn.Linear(8,4),nn.Softmax(1))); f=refold.reparameterize(m,x); r=[]
    for e in ("onnx","xml","pt2","safetensors"):
        try: refold.export(f,O/f"h.{e}",x,half=True); r.append((e,(O/f"h.{e}").stat().st_size))
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r,names(O/"h.onnx"), rel([m(x)],feed(O/"h.onnx",x))
@case
def half_input_model():
    m=live(nn.Sequential(Rep(3,8))).half(); r=[]
    f=refold.reparameterize(m,x.half())
    for e in ("onnx","xml","pt2","safetensors"):
        for h in (False,True):
            try: refold.export(f,O/f"hi.{e}",x.half(),half=h); r.append((e,h))
            except Exception as ex: r.append((e,h,type(ex).__name__,str(ex)[:200]))
    return r,names(O/"hi.onnx")
@case
def double_model():
    m=live(nn.Sequential(Rep(3,8),nn.AdaptiveAvgPool2d(1))).double(); r=[]
    f=refold.reparameterize(m,x.double())
    for e in ("onnx","xml","pt2","safetensors"):
        try: refold.export(f,O/f"do.{e}",x.double()); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r
@case
def bf16():
    m=live(nn.Sequential(Rep(3,8))).bfloat16(); r=[]
    f=refold.reparameterize(m,x.bfloat16())
    for e in ("onnx","xml","pt2","safetensors"):
        for h in (False,True):
            try: refold.export(f,O/f"b.{e}",x.bfloat16(),half=h); r.append((e,h))
            except Exception as ex: r.append((e,h,type(ex).__name__,str(ex)[:160]))
    return r
@case
def half_overflow():
    m=live(nn.Sequential(Rep(3,8)));  m[0].an.running_var.fill_(1e-12); m[0].an.weight.fill_(3.); f=refold.reparameterize(m,x); r=[]
    for e in ("onnx","xml","pt2","safetensors"):
        try: refold.export(f,O/f"ov.{e}",x,half=True); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r
class Mixed(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8); s.e=nn.Embedding(9,8); s.register_buffer("idx",torch.arange(8)); s.register_buffer("np",torch.ones(8),persistent=False)
    def forward(s,image,ids): y=s.r(image).mean((2,3)); return y*s.np+s.e(ids)[:,0], y.argmax(1), (y>0)
@case
def half_mixed():
    ex=(x,torch.tensor([[1,2]])); f=refold.reparameterize(live(Mixed()),ex); r=[]
    for e in ("onnx","xml","pt2","safetensors"):
        try: refold.export(f,O/f"mi.{e}",ex,half=True); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r,names(O/"mi.onnx")
@case
def nms_detector():
    class D(nn.Module):
        def __init__(s): super().__init__(); s.r=Rep(3,8); s.b=nn.Conv2d(8,4,1); s.c=nn.Conv2d(8,1,1)
        def forward(s,image):
            y=s.r(image); b=s.b(y).flatten(2)[0].T; c=s.c(y).flatten()[:]
            b=torch.cat([b[:,:2],b[:,:2]+b[:,2:].abs()],1)
            k=torchvision.ops.nms(b,c,0.5)[:10]
            return {"boxes":b[k],"scores":c[k]}
    f=refold.reparameterize(live(D()),x); r=[]
    for e in ("onnx","xml","pt2","safetensors"):
        try: refold.export(f,O/f"nm.{e}",x); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r
@case
def fasterrcnn():
    m=torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None,weights_backbone=None,num_classes=5).eval(); im=[torch.rand(3,320,320)]
    f=refold.reparameterize(m,(im,)); r=[]
    for e in ("onnx","pt2"):
        try: refold.export(f,O/f"fr.{e}",(im,)); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r
@case
def odd_examples():
    m=live(nn.Sequential(Rep(3,8))); r=[]
    for k,v in {"channels_last":x.to(memory_format=torch.channels_last),"strided":torch.randn(1,3,32,32)[:,:,::2,::2],"grad":x.clone().requires_grad_(),"expand":torch.ones(1,3,1,1).expand(1,3,16,16),"zeros":torch.zeros_like(x),"batch8":torch.randn(8,3,16,16),"empty":torch.zeros(0,3,16,16),"param":nn.Parameter(x),"nan":x*float("nan"),"tiny":torch.randn(1,3,1,1)}.items():
        for e in ("onnx","pt2"):
            try: refold.export(refold.reparameterize(m,v),O/f"od.{e}",v); r.append((k,e))
            except Exception as ex: r.append((k,e,type(ex).__name__,str(ex)[:200]))
    return "\n   ".join(map(str,r))
@case
def numpy_example():
    import numpy as np
    m=live(nn.Sequential(Rep(3,8))); r=[]
    for v in (np.zeros((1,3,16,16),"float32"),[[1]],"x",None,{},(),{"input":x},[x],(x,None)):
        try: refold.export(m,O/"nu.pt2",v); r.append((str(type(v)),"ok"))
        except Exception as ex: r.append((str(type(v)),type(ex).__name__,str(ex)[:200]))
    return "\n   ".join(map(str,r))
@case
def training():
    m=nn.Sequential(Rep(3,8)); r=[]
    for e in ("onnx","pt2","safetensors","xml"):
        try: refold.export(m.train(),O/f"tr.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:100]))
    return r
@case
def scripted():
    m=live(nn.Sequential(Rep(3,8))); s=torch.jit.trace(m,x); r=[]
    for e in ("onnx","pt2","safetensors","xml"):
        try: refold.export(s,O/f"sc.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r
@case
def compiled():
    m=live(nn.Sequential(Rep(3,8))); s=torch.compile(m,backend="eager"); r=[]
    for e in ("onnx","pt2","safetensors","xml"):
        try: refold.export(s,O/f"cm.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    f=refold.reparameterize(s,x); r.append(type(f).__name__)
    return r
@case
def dataparallel():
    m=nn.DataParallel(live(nn.Sequential(Rep(3,8)))); r=[]
    for e in ("onnx","pt2","safetensors","xml"):
        try: refold.export(m,O/f"dp.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    f=refold.reparameterize(m,x); r.append(type(f).__name__); r.append(list(f.state_dict())[:2])
    return r
@case
def random_net():
    class D(nn.Module):
        def __init__(s): super().__init__(); s.r=Rep(3,8)
        def forward(s,i): return F.dropout(s.r(i),.5,True)
    r=[]
    for e in ("onnx","pt2","xml"):
        try: refold.export(live(D()),O/f"ra.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r
