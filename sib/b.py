exec(open("a.py").read().split("@dataclasses")[0])
class S(nn.Module):
    def __init__(s,w): super().__init__(); s.r=Rep(3,8); s.w=w
    def forward(s,image):
        y=s.r(image); return {"dup":{"a":y,"b":y},"inp":{"a":y,"c":image},"const":{"a":y,"k":torch.ones(2)}}[s.w]
for w in ("dup","inp","const"):
    f=refold.reparameterize(live(S(w)),x); t(w,lambda: refold.export(f,O/"q.xml",x))
