import sys; sys.path.insert(0,"/work/shared/cases/ship")
import torch, refold, warnings, pathlib, traceback, time, dataclasses, typing, collections
warnings.simplefilter("ignore"); from torch import nn; import torch.nn.functional as F; from common import *
import onnxruntime as rt
O=pathlib.Path("out")
def names(p):
    s=rt.InferenceSession(str(p),providers=["CPUExecutionProvider"]); return [(i.name,i.shape,i.type) for i in s.get_inputs()],[(o.name,o.shape) for o in s.get_outputs()]
def feed(p,*x):
    s=rt.InferenceSession(str(p),providers=["CPUExecutionProvider"]); return [torch.as_tensor(r) for r in s.run(None,{i.name:t.numpy() for i,t in zip(s.get_inputs(),x)})]
def t(label, fn):
    a=time.time()
    try: print("##",label,"->",fn(),f"{time.time()-a:.1f}s",flush=True)
    except refold.RefoldError as e: print("##",label,"-> REFUSED",type(e).__name__,str(e)[:400],flush=True)
    except Exception as e: print("##",label,"-> CRASH",type(e).__name__,str(e)[:400],flush=True); traceback.print_exc(limit=-4)
x=torch.randn(1,3,16,16)
only=sys.argv[1:]
def case(f):
    if not only or f.__name__ in only: t(f.__name__,f)
@dataclasses.dataclass
class Out: scores: torch.Tensor; boxes: typing.List[torch.Tensor]; extra: typing.Optional[torch.Tensor]=None
class DC(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8)
    def forward(s,image): y=s.r(image); return Out(y.mean((2,3)),[y,y+1])
@case
def dataclass_out():
    f=refold.reparameterize(live(DC()),x); r=[]
    for e in ("onnx","xml","pt2"):
        try: p=refold.export(f,O/f"dc.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:200]))
    return r,names(O/"dc.onnx")
NT=collections.namedtuple("NT","a b")
class Nest(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8)
    def forward(s,image,flags=None): y=s.r(image); return {"p":(y,{"q":y*2}),"n":NT(y.sum(),None),"s":3,"i":image}
@case
def nested_out():
    f=refold.reparameterize(live(Nest()),x); r=[]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"ne.{e}",x); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:300]))
    return r
class ListIn(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8); s.q=Rep(3,8)
    def forward(s,images): a,b=images; return s.r(a)+s.q(b)
@case
def list_in():
    f=refold.reparameterize(live(ListIn()),([x,x],)); r=[]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"li.{e}",([x,x],)); r.append(e)
        except Exception as ex: r.append((e,type(ex).__name__,str(ex)[:300]))
    return r,names(O/"li.onnx")
class KW(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8); s.e=nn.Embedding(10,8)
    def forward(s,*,pixel_values,ids=None): y=s.r(pixel_values).mean((2,3)); return y if ids is None else y+s.e(ids).sum(1)
@case
def kwonly_in():
    m=live(KW()); ex={"pixel_values":x,"ids":torch.tensor([[1,2,3]])}; f=refold.reparameterize(m,ex); r=[rel([m(**ex)],[f(**ex)])]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"kw.{e}",ex); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    r.append([g.shape for g in feed(O/"kw.onnx",torch.randn(3,3,16,16),torch.randint(0,9,(3,3)))])
    return r,names(O/"kw.onnx")
class Bool(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8)
    def forward(s,image,mask): y=s.r(image); return y.masked_fill(mask[:,None],0.)
@case
def bool_in():
    ex=(x,torch.rand(1,16,16)>.5); f=refold.reparameterize(live(Bool()),ex); r=[]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"bo.{e}",ex); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r,names(O/"bo.onnx")
class Unused(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8)
    def forward(s,image,lengths,spare=1.0): return s.r(image)
@case
def unused_in():
    ex=(x,torch.tensor([3])); f=refold.reparameterize(live(Unused()),ex); r=[]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"un.{e}",ex); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r,names(O/"un.onnx")
class Same(nn.Module):
    def __init__(s): super().__init__(); s.r=Rep(3,8)
    def forward(s,image): y=s.r(image); return {"a":y,"b":y,"c":image, "k":torch.ones(2)}
@case
def same_out():
    f=refold.reparameterize(live(Same()),x); r=[]
    for e in ("onnx","xml","pt2"):
        try: refold.export(f,O/f"sa.{e}",x); r.append(e)
        except Exception as exx: r.append((e,type(exx).__name__,str(exx)[:300]))
    return r,names(O/"sa.onnx")
@case
def stable_names():
    a=live(nn.Sequential(Rep(3,8),nn.Conv2d(8,4,1))); b=live(nn.Sequential(Rep(3,8),Rep(8,8),nn.Conv2d(8,4,1)))
    refold.export(refold.reparameterize(a,x),O/"s1.onnx",x); refold.export(refold.reparameterize(b,x),O/"s2.onnx",x); return names(O/"s1.onnx"),names(O/"s2.onnx")
@case
def stale_data():
    big=nn.Sequential(nn.Conv2d(3,8,3)).eval(); p=O/"st.onnx"; (O/"st.onnx.data").write_bytes(b"old"); refold.export(big,p,x); return sorted(q.name for q in O.glob("st*"))
@case
def weird_paths():
    r=[]; m=live(nn.Sequential(Rep(3,4)))
    (O/"d ir ü").mkdir(exist_ok=True); (O/"dir.onnx").mkdir(exist_ok=True)
    for p in ("out/d ir ü/n ä.onnx","out/U.ONNX","out/none/x.onnx","out/dir.onnx","out/x","out/x.tflite","out/x.pte","out/x.engine","out/x.pth","out/x.onnx/","out/y.so","out/z.pt2.zip"):
        for q in ([p] if "dir" not in p else [p]):
            try: r.append((p,str(refold.export(m,q,x))))
            except refold.RefoldError as e: r.append((p,str(e)[:160]))
            except Exception as e: r.append((p,"CRASH",repr(e)[:160]))
    return "\n   ".join(map(str,r))
@case
def bad_names():
    r=[]; m=live(nn.Sequential(Rep(3,4)))
    for k in ({"input_names":["a","b"]},{"output_names":["a","a"]},{"output_names":["input"],"input_names":["input"]},{"input_names":"img"},{"input_names":[""]},{"output_names":["a b/c"]},{"opset":3},{"opset":99},{"opset":"17"},{"dynamic":"height"},{"dynamic":{"x":{0:"n"}}},{"dynamic":{"input":{7:"n"}}},{"dynamic":{"input":{-1:"w",2:"h"}}},{"dynamic":{"input":{0:"n",2:"n"}}},{"dynamic":{0:{0:"b"}}},{"dynamic":True},{"dynamic":{"input":{0:""}}},{"dynamic":{"input":[0,2]}},{"dynamic":" batch, size "},{"dynamic":"size,batch"},{"half":"yes"}):
        try: refold.export(m,O/"bn.onnx",x,**k); r.append((k,names(O/"bn.onnx")))
        except refold.RefoldError as e: r.append((k,"REFUSED "+str(e)[:200]))
        except Exception as e: r.append((k,"CRASH",repr(e)[:200]))
    return "\n   ".join(map(str,r))
