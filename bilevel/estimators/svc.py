"""A linear classifier that chooses its soft-margin C by bilevel optimisation."""

from __future__ import annotations
import math
import numpy as np, torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import check_cv
from bilevel import *
from bilevel.estimators.losses import *
from bilevel.estimators.machines import Machines
from bilevel.estimators.newton import NewtonResponse
L={'logistic':LOG,'squared_hinge':SQUARED_HINGE}
V={'log':LOG,'squared_hinge':SQUARED_HINGE,'zero_one':SMOOTHED_ZERO_ONE}
class P(BaseEstimator, ClassifierMixin):
    def __init__(self, loss='logistic', validation_loss='log', per_feature=False, shrinkage=.3, cv=5, gamma=1e5, tol=1e-5,vt=1e-5):
        self.loss=loss;self.validation_loss=validation_loss;self.per_feature=per_feature;self.shrinkage=shrinkage;self.cv=cv;self.gamma=gamma;self.tol=tol;self.vt=vt
    def fit(self,X,y):
        import sys
        sys.path.insert(0,'/tmp')
        from land import machines
        self.classes_,t=np.unique(y,return_inverse=True)
        y=2.*t-1
        M=machines(X,y,L[self.loss],V[self.validation_loss],self.cv,self.shrinkage/len(y) if self.per_feature else 0.)
        R=NewtonResponse(M)
        d=X.shape[1]
        lam0=torch.zeros(d if self.per_feature else 1,dtype=torch.float64)
        y0,self.n0=R.solve(lam0.numpy(),np.zeros((len(M),d+1)))
        b=math.log(1e4)
        self.count=0
        def up(x,y):
            self.count+=1
            return M.upper(x,y)
        pb=BilevelProblem(upper=up,lower=M.lower,upper_domain=Box(-b,b),lower_response=R)
        s=PBGD(penalty=self.gamma,outer=QuasiNewton(tolerance=self.tol,value_tolerance=self.vt)).solve(pb,lam0,torch.from_numpy(y0),tolerance=self.tol,progress=False)
        self.solution_=s
        n=len(y)
        F=Machines(M.rows,y[None],np.full((1,n),1/n),np.zeros((1,n)),np.array([1.*n]),M.loss,M.validation_loss)
        z,_=NewtonResponse(F).solve(s.x.numpy(),s.y.mean(0,keepdim=True).numpy())
        self.coef_=z[:,:-1];self.intercept_=z[:,-1]
        self.best_C_=np.exp(-s.x.numpy())
        return self
    def decision_function(self,X): return X@self.coef_[0]+self.intercept_[0]
    def predict(self,X): return self.classes_[(self.decision_function(X)>0).astype(int)]
